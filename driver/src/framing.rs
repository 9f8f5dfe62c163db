//! The published part of the payload: 32-byte headers, CRC-64/NVME, JSON body, and our request field names.
