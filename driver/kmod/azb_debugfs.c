// SPDX-License-Identifier: GPL-2.0-only
/*
 * azb_vsc: /sys/kernel/debug/azb_vsc/<device>/pending, one line for each request
 * that the host holds.  What a stuck channel is waiting for.
 */
#include <linux/seq_file.h>

#include "azb_vsc.h"

static struct dentry *azb_debugfs_root;

static int pending_show(struct seq_file *s, void *unused)
{
	struct azb_dev *dev = s->private;
	struct azb_request *req;
	ktime_t now = ktime_get();

	seq_puts(s, "guid age_ms timeout_ms request_len response_len data_len data_valid pages door\n");
	spin_lock_bh(&dev->lock);
	list_for_each_entry(req, &dev->pending, node)
		seq_printf(s, "%pUl %lld %u %u %u %u %u %u %s\n", &req->guid,
			   ktime_ms_delta(now, req->since), req->timeout,
			   req->buf[AZB_REQUEST].len, req->buf[AZB_RESPONSE].len,
			   req->buf[AZB_DATA].len, req->data_valid, req->npages,
			   READ_ONCE(req->cmd) ? "uring" :
			   kref_read(&req->ref) > 1 ? "ioctl" : "abandoned");
	spin_unlock_bh(&dev->lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(pending);

void azb_debugfs_add(struct azb_dev *dev)
{
	dev->debugfs = debugfs_create_dir(dev_name(&dev->hdev->device),
					  azb_debugfs_root);
	debugfs_create_file("pending", 0400, dev->debugfs, dev, &pending_fops);
}

void azb_debugfs_remove(struct azb_dev *dev)
{
	debugfs_remove_recursive(dev->debugfs);
	dev->debugfs = NULL;
}

void azb_debugfs_init(void)
{
	azb_debugfs_root = debugfs_create_dir(KBUILD_MODNAME, NULL);
}

void azb_debugfs_exit(void)
{
	debugfs_remove_recursive(azb_debugfs_root);
}
