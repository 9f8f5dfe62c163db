/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * User-space interface of azb_vsc: the node /dev/azure_blob, its ioctl in both
 * numberings and its io_uring command.
 */
#ifndef _UAPI_MISC_AZURE_BLOB_H
#define _UAPI_MISC_AZURE_BLOB_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * struct azb_answer - what the host said about one request
 * @status: status of the VSP, 0 when it has executed the request
 * @response_len: number of valid bytes in the response buffer
 */
struct azb_answer {
	__u32 status;
	__u32 response_len;
};

/**
 * struct azb_request_sync - one request: three buffers, a time-out, an answer
 * @guid: 16 raw bytes that name the request on the host and in debugfs
 * @timeout: milliseconds after which the host gives up; 0 is for ever
 * @request_len: length of the request buffer, not 0
 * @response_len: capacity of the response buffer, not 0
 * @data_len: length of the data buffer; 0 when there is none
 * @data_valid: bytes of the data buffer that the host may read, 0 for a read
 * @reserved: padding in older headers; must be 0 with AZB_IOC_REQUEST
 * @request_buffer: address; the memory need not be writable
 * @response_buffer: address; the memory must be writable
 * @data_buffer: address; the memory must be writable
 * @response: out, the answer of the host
 *
 * Lengths need no multiple and addresses no alignment.  The pages of the three
 * buffers together are AZB_MAX_PAGES at most.
 */
struct azb_request_sync {
	__u8 guid[16];
	__u32 timeout;
	__u32 request_len;
	__u32 response_len;
	__u32 data_len;
	__u32 data_valid;
	__u32 reserved;
	__aligned_u64 request_buffer;
	__aligned_u64 response_buffer;
	__aligned_u64 data_buffer;
	struct azb_answer response;
};

/**
 * struct azb_uring_cmd - the command area of an IORING_OP_URING_CMD entry
 * @request: address of a struct azb_request_sync, which must stay in place
 *	until the completion has been posted
 * @reserved: must be 0
 *
 * The entry's cmd_op is one of the two ioctl numbers.  The completion's res is
 * 0 or a negative error.  The answer is stored in the struct as by the ioctl;
 * with 32-byte completions it is in the first extra word as well, the status
 * in the lower half.
 */
struct azb_uring_cmd {
	__aligned_u64 request;
	__aligned_u64 reserved;
};

#define AZB_MAX_PAGES		8192
#define AZB_DEVICE_NAME		"azure_blob"

/* the number of the posted patches, and the number of the shipped modules */
#define AZB_IOC_REQUEST		_IOWR('R', 0xf0, struct azb_request_sync)
#define AZB_IOC_REQUEST_COMPAT	_IOWR('R', 10, struct azb_request_sync)

#endif /* _UAPI_MISC_AZURE_BLOB_H */
