//! Mock VSP: a FUSE file `azure_blob` that answers the real ioctl and executes requests against a backend.
