// SPDX-License-Identifier: GPL-2.0-only
/*
 * azb_vsc: the node.  Two doors to one request object: an ioctl that waits, and
 * an io_uring command that does not.
 */
#include <linux/cred.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "azb_vsc.h"

static int azb_open(struct inode *inode, struct file *file)
{
	/* the misc core stored it, and holds off deregistration meanwhile */
	struct azb_dev *dev = container_of(file->private_data, struct azb_dev,
					   misc);

	kref_get(&dev->ref);
	file->private_data = dev;
	return 0;
}

static int azb_release(struct inode *inode, struct file *file)
{
	azb_dev_put(file->private_data);
	return 0;
}

/* what both doors do first; the order of the errors is part of the interface */
static struct azb_request *azb_accept(struct file *file, unsigned int cmd,
				      struct azb_request_sync __user *arg)
{
	struct azb_dev *dev = file->private_data;
	struct azb_request_sync u;

	if (cmd != AZB_IOC_REQUEST && cmd != AZB_IOC_REQUEST_COMPAT)
		return ERR_PTR(-EINVAL);
	/* azb_request_send() asks again, where it counts */
	if (READ_ONCE(dev->removing))
		return ERR_PTR(-ENODEV);
	if (file->f_cred != current_cred())
		return ERR_PTR(-EACCES);
	if (copy_from_user(&u, arg, sizeof(u)))
		return ERR_PTR(-EFAULT);
	/* the other number is older than the name of the field */
	if (cmd == AZB_IOC_REQUEST && u.reserved)
		return ERR_PTR(-EINVAL);

	return azb_request_create(dev, &u);
}

static long azb_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct azb_request_sync __user *user = (void __user *)arg;
	struct azb_request *req;
	long ret;

	req = azb_accept(file, cmd, user);
	if (IS_ERR(req))
		return PTR_ERR(req);

	ret = azb_request_send(req);
	if (ret)
		goto out;

	/*
	 * Only a fatal signal ends the wait early.  The request then goes on
	 * without its task: the host's reference keeps the pages pinned.
	 */
	if (wait_for_completion_killable(&req->done)) {
		ret = -EINTR;
		goto out;
	}

	ret = req->error;
	if (!ret && copy_to_user(&user->response, &req->answer,
				 sizeof(req->answer)))
		ret = -EFAULT;
out:
	azb_request_put(req);
	return ret;
}

#ifdef AZB_HAVE_URING_CMD

#ifdef AZB_URING_IN_OWN_DIR
#include <linux/io_uring/cmd.h>
#else
#include <linux/io_uring.h>
#endif

/* the flags that a submitter may set; the kernel's own are in the top byte */
#define AZB_URING_USER_FLAGS	0x00ffffff
/* longest time-out where a closed ring has to wait for its commands */
#define AZB_URING_MAX_TIMEOUT_MS	(5 * 60 * 1000)

static void azb_uring_done(struct io_uring_cmd *cmd, int ret, u64 extra,
			   unsigned int flags)
{
#if defined(AZB_URING_DONE32)
	io_uring_cmd_done32(cmd, ret, extra, flags);
#elif defined(AZB_URING_TW_PLAIN)
	io_uring_cmd_done(cmd, ret, extra);
#else
	io_uring_cmd_done(cmd, ret, extra, flags);
#endif
}

static struct azb_request **azb_uring_slot(struct io_uring_cmd *cmd)
{
	BUILD_BUG_ON(sizeof(struct azb_request *) > sizeof(cmd->pdu));
	return (struct azb_request **)cmd->pdu;
}

static const struct azb_uring_cmd *azb_uring_area(struct io_uring_cmd *cmd)
{
#ifdef AZB_URING_SQE
	return (const void *)cmd->sqe->cmd;
#else
	return cmd->cmd;
#endif
}

/* in the task that submitted, or in a worker when that task is on its way out */
static void azb_uring_finish(struct io_uring_cmd *cmd, unsigned int flags)
{
	struct azb_request *req = *azb_uring_slot(cmd);
	u64 extra = 0;
	int ret = req->error;

	if (!ret) {
		extra = req->answer.status |
			(u64)req->answer.response_len << 32;
		if (current->flags & (PF_EXITING | PF_KTHREAD) ||
		    copy_to_user(req->user, &req->answer, sizeof(req->answer)))
			ret = -EFAULT;
	}
	azb_uring_done(cmd, ret, extra, flags);
	azb_request_put(req);
}

#if defined(AZB_URING_TW_TOKEN)
static void azb_uring_task_work(struct io_tw_req tw_req, io_tw_token_t tw)
{
	azb_uring_finish(io_uring_cmd_from_tw(tw_req),
			 IO_URING_CMD_TASK_WORK_ISSUE_FLAGS);
}
#elif defined(AZB_URING_TW_FLAGS)
static void azb_uring_task_work(struct io_uring_cmd *cmd, unsigned int flags)
{
	azb_uring_finish(cmd, flags);
}
#else
static void azb_uring_task_work(struct io_uring_cmd *cmd)
{
	azb_uring_finish(cmd, 0);
}
#endif

void azb_uring_complete(struct io_uring_cmd *cmd)
{
	io_uring_cmd_complete_in_task(cmd, azb_uring_task_work);
}

#ifdef AZB_URING_CANCEL
/*
 * The ring goes away: let go of the command, as a fatal signal does of the
 * ioctl.  Whoever takes req->cmd completes it, so this and an answer of the
 * host cannot both.
 */
static int azb_uring_cancel(struct io_uring_cmd *cmd, unsigned int flags)
{
	struct azb_request *req = *azb_uring_slot(cmd);

	if (xchg(&req->cmd, NULL)) {
		azb_uring_done(cmd, -ECANCELED, 0, flags);
		azb_request_put(req);
	}
	return 0;
}
#endif

/*
 * A ring that cannot cancel its commands waits for the host when it is closed,
 * and so does exec(): the host has to be told to end them.
 */
static bool azb_uring_timeout_ok(const struct azb_request *req)
{
#ifdef AZB_URING_CANCEL
	return true;
#else
	return req->timeout && req->timeout <= AZB_URING_MAX_TIMEOUT_MS;
#endif
}

static int azb_uring_cmd(struct io_uring_cmd *cmd, unsigned int flags)
{
	struct azb_request_sync __user *user;
	const struct azb_uring_cmd *area;
	struct azb_request *req;
	u64 addr, reserved;
	int ret;

#ifdef AZB_URING_CANCEL
	if (flags & IO_URING_F_CANCEL)
		return azb_uring_cancel(cmd, flags);
#endif
	area = azb_uring_area(cmd);
	addr = READ_ONCE(area->request);
	reserved = READ_ONCE(area->reserved);
	/* no flag means anything here, above all not a registered buffer */
	if (reserved || cmd->flags & AZB_URING_USER_FLAGS)
		return -EINVAL;

	user = u64_to_user_ptr(addr);
	req = azb_accept(cmd->file, cmd->cmd_op, user);
	if (IS_ERR(req)) {
		ret = PTR_ERR(req);
		/* -EAGAIN as a return value would mean: repeat in a worker */
		if (ret != -EAGAIN)
			return ret;
		azb_uring_done(cmd, ret, 0, flags);
		return -EIOCBQUEUED;
	}

	if (!azb_uring_timeout_ok(req)) {
		azb_request_put(req);
		return -EINVAL;
	}

	/* one reference is the command's, this one is for the lines below */
	kref_get(&req->ref);
	req->user = &user->response;
	*azb_uring_slot(cmd) = req;
	WRITE_ONCE(req->cmd, cmd);
#ifdef AZB_URING_CANCEL
	io_uring_cmd_mark_cancelable(cmd, flags);
#endif

	ret = azb_request_send(req);
	if (ret && xchg(&req->cmd, NULL)) {
		azb_uring_done(cmd, ret, 0, flags);
		azb_request_put(req);
	}
	azb_request_put(req);
	return -EIOCBQUEUED;
}

#else /* AZB_HAVE_URING_CMD */

void azb_uring_complete(struct io_uring_cmd *cmd)
{
}

#endif /* AZB_HAVE_URING_CMD */

const struct file_operations azb_fops = {
	.owner = THIS_MODULE,
	.open = azb_open,
	.release = azb_release,
	.unlocked_ioctl = azb_ioctl,
	.llseek = noop_llseek,
#ifdef AZB_HAVE_URING_CMD
	.uring_cmd = azb_uring_cmd,
#endif
};
