/* SPDX-License-Identifier: GPL-2.0-only */
/* What Linux 6.4 declares of commands: their area is a pointer. */
#ifndef AZB_SHAPE_H
#define AZB_SHAPE_H

#include <linux/fs.h>
#include <linux/types.h>
#include <uapi/linux/io_uring.h>

#define IO_URING_F_CANCEL	(1 << 11)

struct io_uring_cmd {
	struct file *file;
	const void *cmd;
	union {
		void (*task_work_cb)(struct io_uring_cmd *cmd, unsigned);
		void *cookie;
	};
	u32 cmd_op;
	u32 flags;
	u8 pdu[32];
};

void io_uring_cmd_done(struct io_uring_cmd *cmd, ssize_t ret, ssize_t res2,
		       unsigned issue_flags);
void io_uring_cmd_complete_in_task(struct io_uring_cmd *cmd,
				   void (*task_work_cb)(struct io_uring_cmd *, unsigned));

#endif
