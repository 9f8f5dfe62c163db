/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * azb_vsc: the packets, and the objects that the parts of the module share.
 *
 * Lifetimes.  An azb_dev lives from probe until its last open file and its last
 * request are gone; its channel may be touched only while azb_dev.removing is
 * clear and azb_dev.gate is held for reading.  An azb_request lives until both
 * its submitter and the host have let go of it, so its pages stay pinned for
 * exactly as long as the host may write to them.
 */
#ifndef AZB_VSC_H
#define AZB_VSC_H

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/hyperv.h>
#include <linux/kref.h>
#include <linux/ktime.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/uuid.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "include/uapi/misc/azure_blob.h"

struct io_uring_cmd;

/* requests that the host may hold at once */
#define AZB_QUEUE_DEPTH		1024
#define AZB_RING_BYTES		(128 * 1024)

#define AZB_OP_USER_REQUEST	0x100

/* guest to host, after the page list */
struct azb_vsp_request {
	__le32 version;
	__le32 timeout_ms;
	__le32 data_offset;
	__le32 data_len;
	__le32 data_valid;
	__le32 operation;
	__le32 request_offset;
	__le32 request_len;
	__le32 response_offset;
	__le32 response_len;
	guid_t transaction;
} __packed;
static_assert(sizeof(struct azb_vsp_request) == 56);

/* host to guest, in the completion packet */
struct azb_vsp_response {
	__le32 length;
	__le32 status;
	__le32 response_len;
} __packed;
static_assert(sizeof(struct azb_vsp_response) == 12);

static_assert(sizeof(struct azb_request_sync) == 72);
static_assert(offsetof(struct azb_request_sync, request_buffer) == 40);
static_assert(offsetof(struct azb_request_sync, response) == 64);

/**
 * struct azb_dev - one offered device
 * @ref: held by the binding, every open file and every request
 * @hdev: the VMBus device; valid under @gate while !@removing
 * @misc: the node
 * @debugfs: directory of this device
 * @gate: read side around any use of the channel, write side to set @removing
 * @removing: no request may be sent any more
 * @lock: protects @pending, @revoked and azb_request.listed
 * @pending: requests that the host holds
 * @revoked: requests that met the rescind while being sent: the host may have
 *	seen them, no answer can be matched, so they wait for the channel's end
 * @drained: woken when @pending becomes empty
 * @ids: request ids that the host holds
 * @next_id: where the search for a free id goes on
 * @nr_ids: how many are in use, under the lock of @ids
 * @pinned: pages now pinned
 * @pin_limit: pages that may be pinned; beyond it submission says EAGAIN
 */
struct azb_dev {
	struct kref ref;
	struct hv_device *hdev;
	struct miscdevice misc;
	struct dentry *debugfs;

	struct rw_semaphore gate;
	bool removing;

	spinlock_t lock; /* pending, revoked, azb_request.listed */
	struct list_head pending;
	struct list_head revoked;
	wait_queue_head_t drained;

	struct xarray ids;
	u32 next_id;
	u32 nr_ids;

	atomic_long_t pinned;
	long pin_limit;
};

/**
 * enum azb_part - the buffers of a request in the order of the page list
 * @AZB_DATA: payload, either way
 * @AZB_REQUEST: read by the host
 * @AZB_RESPONSE: written by the host
 * @AZB_PARTS: how many there are
 */
enum azb_part { AZB_DATA, AZB_REQUEST, AZB_RESPONSE, AZB_PARTS };

/**
 * struct azb_buffer - one pinned user buffer
 * @addr: user address of its first byte
 * @len: bytes
 * @first: index of its first page in azb_request.pages
 * @npages: pages it touches
 * @npinned: pages of it that are pinned
 */
struct azb_buffer {
	unsigned long addr;
	u32 len;
	u32 first;
	u32 npages;
	u32 npinned;
};

/**
 * struct azb_request - one request, owned by the kernel
 * @ref: one for the submitter, one for the host while it holds the request
 * @dev: device
 * @node: in azb_dev.pending or azb_dev.revoked
 * @listed: @node is in azb_dev.pending
 * @sent: the host may have written to the pages
 * @since: when it was sent
 * @guid: name given by the submitter
 * @timeout: as passed to the host
 * @data_valid: as passed to the host
 * @buf: the three buffers
 * @pages: pages of all buffers, in wire order
 * @npages: length of @pages
 * @done: completed when @error and @answer are valid
 * @error: 0 or a negative errno
 * @answer: what the host said
 * @cmd: io_uring command to complete, taken by whoever completes it
 * @user: where the io_uring submitter wants the answer
 * @release: frees the request when the last holder cannot sleep
 */
struct azb_request {
	struct kref ref;
	struct azb_dev *dev;
	struct list_head node;
	bool listed;
	bool sent;
	ktime_t since;

	guid_t guid;
	u32 timeout;
	u32 data_valid;
	struct azb_buffer buf[AZB_PARTS];
	struct page **pages;
	u32 npages;

	struct completion done;
	int error;
	struct azb_answer answer;

	struct io_uring_cmd *cmd;
	struct azb_answer __user *user;

	struct work_struct release;
};

/* azb_main.c */
void azb_dev_put(struct azb_dev *dev);

/* azb_request.c */
int azb_request_init(void);
void azb_request_exit(void);
struct azb_request *azb_request_create(struct azb_dev *dev,
				       const struct azb_request_sync *u);
int azb_request_send(struct azb_request *req);
void azb_request_put(struct azb_request *req);
void azb_request_finish(struct azb_request *req, int error,
			const struct azb_answer *answer);
void azb_channel_drain(struct azb_dev *dev, struct vmbus_channel *channel);
void azb_channel_callback(void *context);
void azb_fail_all(struct azb_dev *dev);
u64 azb_id_get(struct vmbus_channel *channel, u64 addr);
u64 azb_id_put(struct vmbus_channel *channel, u64 id);

/* azb_chrdev.c */
extern const struct file_operations azb_fops;
void azb_uring_complete(struct io_uring_cmd *cmd);

/* azb_debugfs.c */
void azb_debugfs_init(void);
void azb_debugfs_exit(void);
void azb_debugfs_add(struct azb_dev *dev);
void azb_debugfs_remove(struct azb_dev *dev);

#endif /* AZB_VSC_H */
