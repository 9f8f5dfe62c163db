/* SPDX-License-Identifier: GPL-2.0-only */
/* What Linux 6.18 declares: a type for the callback, and the second result only for large completions. */
#ifndef AZB_SHAPE_H
#define AZB_SHAPE_H

#include <linux/fs.h>
#include <linux/types.h>
#include <uapi/linux/io_uring.h>

#define IO_URING_F_CANCEL	(1 << 11)

struct io_uring_cmd;
typedef void (*io_uring_cmd_tw_t)(struct io_uring_cmd *cmd, unsigned issue_flags);

struct io_uring_cmd {
	struct file *file;
	const struct io_uring_sqe *sqe;
	io_uring_cmd_tw_t task_work_cb;
	u32 cmd_op;
	u32 flags;
	u8 pdu[32];
};

void io_uring_cmd_done(struct io_uring_cmd *cmd, s32 ret, unsigned issue_flags);
void io_uring_cmd_done32(struct io_uring_cmd *cmd, s32 ret, u64 res2, unsigned issue_flags);
void io_uring_cmd_complete_in_task(struct io_uring_cmd *cmd, io_uring_cmd_tw_t task_work_cb);
void io_uring_cmd_mark_cancelable(struct io_uring_cmd *cmd, unsigned issue_flags);

#endif
