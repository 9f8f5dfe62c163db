/* SPDX-License-Identifier: GPL-2.0-only */
/* What Linux 6.7 declares: commands can be taken back, the header is the old one. */
#ifndef AZB_SHAPE_H
#define AZB_SHAPE_H

#include <linux/fs.h>
#include <linux/types.h>
#include <uapi/linux/io_uring.h>

#define IO_URING_F_CANCEL	(1 << 11)

struct io_uring_cmd {
	struct file *file;
	const struct io_uring_sqe *sqe;
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
void io_uring_cmd_mark_cancelable(struct io_uring_cmd *cmd, unsigned issue_flags);

#endif
