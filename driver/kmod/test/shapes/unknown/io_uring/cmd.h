/* SPDX-License-Identifier: GPL-2.0-only */
/* A callback that nobody knows yet: the door is left out. */
#ifndef AZB_SHAPE_H
#define AZB_SHAPE_H

#include <linux/fs.h>
#include <linux/types.h>
#include <uapi/linux/io_uring.h>

#define IO_URING_F_CANCEL	(1 << 11)

struct io_uring_cmd {
	struct file *file;
	const struct io_uring_sqe *sqe;
	u32 cmd_op;
	u32 flags;
	u8 pdu[32];
};

void io_uring_cmd_complete_in_task(struct io_uring_cmd *cmd, void *something_new);

#endif
