/* SPDX-License-Identifier: GPL-2.0-only */
/* What Linux 7.2 declares: the callback gets a request and a token. */
#ifndef AZB_SHAPE_H
#define AZB_SHAPE_H

#include <linux/fs.h>
#include <linux/types.h>
#include <uapi/linux/io_uring.h>

#define IO_URING_F_CANCEL	(1 << 11)

struct io_tw_req {
	void *req;
};
typedef struct io_tw_state {
	bool cancel;
} io_tw_token_t;
typedef void (*io_req_tw_func_t)(struct io_tw_req tw_req, io_tw_token_t tw);

struct io_uring_cmd {
	struct file *file;
	const struct io_uring_sqe *sqe;
	u32 cmd_op;
	u32 flags;
	u8 pdu[32];
};

void io_uring_cmd_done(struct io_uring_cmd *cmd, s32 ret, unsigned issue_flags);
void io_uring_cmd_done32(struct io_uring_cmd *cmd, s32 ret, u64 res2, unsigned issue_flags);
void io_uring_cmd_complete_in_task(struct io_uring_cmd *cmd, io_req_tw_func_t task_work_cb);
struct io_uring_cmd *io_uring_cmd_from_tw(struct io_tw_req tw_req);
#define IO_URING_CMD_TASK_WORK_ISSUE_FLAGS	1
void io_uring_cmd_mark_cancelable(struct io_uring_cmd *cmd, unsigned issue_flags);

#endif
