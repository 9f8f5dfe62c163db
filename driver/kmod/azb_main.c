// SPDX-License-Identifier: GPL-2.0-only
/*
 * azb_vsc: VMBus driver of the Azure Blob device.  Probe, removal, module.
 *
 * The device is a pipe: user space names three buffers, the host is told their
 * pages, the host answers with eight bytes.  What is in the buffers is no
 * business of the kernel.
 */
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "azb_vsc.h"

/* after a rescind the host returns what it holds at once or never */
#define AZB_DRAIN_RESCINDED	(5 * HZ)
/* at an unbind every request still ends by its own time-out */
#define AZB_DRAIN_UNBIND	(120 * HZ)
#define AZB_DRAIN_POLL_MS	5

static void azb_dev_free(struct kref *ref)
{
	struct azb_dev *dev = container_of(ref, struct azb_dev, ref);

	xa_destroy(&dev->ids);
	kfree(dev);
}

void azb_dev_put(struct azb_dev *dev)
{
	kref_put(&dev->ref, azb_dev_free);
}

/* the channel outlives an unbind, and may get another driver */
static void azb_drop_callbacks(struct vmbus_channel *channel)
{
	channel->next_request_id_callback = NULL;
	channel->request_addr_callback = NULL;
}

static int azb_probe(struct hv_device *hdev,
		     const struct hv_vmbus_device_id *id)
{
	struct vmbus_channel *channel = hdev->channel;
	struct azb_dev *dev;
	int ret;

	/* page frame numbers go to the host as they are */
	BUILD_BUG_ON(PAGE_SIZE != HV_HYP_PAGE_SIZE);

	dev = kzalloc(sizeof(*dev), GFP_KERNEL);
	if (!dev)
		return -ENOMEM;

	kref_init(&dev->ref);
	dev->hdev = hdev;
	init_rwsem(&dev->gate);
	spin_lock_init(&dev->lock);
	INIT_LIST_HEAD(&dev->pending);
	INIT_LIST_HEAD(&dev->revoked);
	init_waitqueue_head(&dev->drained);
	xa_init_flags(&dev->ids, XA_FLAGS_ALLOC1 | XA_FLAGS_LOCK_IRQ);
	dev->pin_limit = max_t(long, AZB_MAX_PAGES, totalram_pages() / 4);
	hv_set_drvdata(hdev, dev);

	/* the host sees numbers, never an address of ours */
	channel->next_request_id_callback = azb_id_get;
	channel->request_addr_callback = azb_id_put;
	ret = vmbus_open(channel, AZB_RING_BYTES, AZB_RING_BYTES, NULL, 0,
			 azb_channel_callback, dev);
	if (ret) {
		dev_err(&hdev->device, "cannot open the channel: %d\n", ret);
		goto err_put;
	}

	dev->misc.minor = MISC_DYNAMIC_MINOR;
	dev->misc.name = AZB_DEVICE_NAME;
	dev->misc.fops = &azb_fops;
	dev->misc.mode = 0600;
	dev->misc.parent = &hdev->device;
	ret = misc_register(&dev->misc);
	if (ret) {
		dev_err(&hdev->device, "cannot create /dev/%s: %d\n",
			AZB_DEVICE_NAME, ret);
		goto err_close;
	}

	azb_debugfs_add(dev);
	return 0;

err_close:
	vmbus_close(channel);
err_put:
	azb_drop_callbacks(channel);
	hv_set_drvdata(hdev, NULL);
	azb_dev_put(dev);
	return ret;
}

static bool azb_is_drained(struct azb_dev *dev)
{
	bool drained;

	spin_lock_bh(&dev->lock);
	/* nothing can answer a revoked request: they cost the full wait */
	drained = list_empty(&dev->pending) && list_empty(&dev->revoked);
	spin_unlock_bh(&dev->lock);
	return drained;
}

/*
 * Waits for the host to return the requests that it holds.  A rescind has taken
 * our callback away before remove() is called, so nobody but us reads the ring
 * then; and the rescind may come while we wait.
 */
static void azb_drain(struct azb_dev *dev, struct vmbus_channel *channel)
{
	unsigned long start = jiffies, limit;
	bool rescinded = false;

	for (;;) {
		if (!rescinded && READ_ONCE(channel->rescind)) {
			rescinded = true;
			start = jiffies;
		}
		if (rescinded)
			azb_channel_drain(dev, channel);
		if (azb_is_drained(dev))
			return;

		limit = rescinded ? AZB_DRAIN_RESCINDED : AZB_DRAIN_UNBIND;
		if (time_after(jiffies, start + limit))
			return;
		wait_event_timeout(dev->drained, azb_is_drained(dev),
				   msecs_to_jiffies(AZB_DRAIN_POLL_MS));
	}
}

static void azb_do_remove(struct hv_device *hdev)
{
	struct vmbus_channel *channel = hdev->channel;
	struct azb_dev *dev = hv_get_drvdata(hdev);

	/* when the node has gone, nothing is sent; what was sent is on the list */
	down_write(&dev->gate);
	WRITE_ONCE(dev->removing, true);
	up_write(&dev->gate);
	misc_deregister(&dev->misc);

	azb_drain(dev, channel);
	azb_debugfs_remove(dev);

	/*
	 * Either everything has been answered, or the host has been told that
	 * the channel is closed and has confirmed it, or the host itself has
	 * revoked the channel.  In each case it has no right to the pages any
	 * more, as it has none to the ring that is freed here.
	 */
	vmbus_close(channel);
	azb_drop_callbacks(channel);
	azb_fail_all(dev);

	hv_set_drvdata(hdev, NULL);
	azb_dev_put(dev);
}

#ifdef AZB_REMOVE_VOID
static void azb_remove(struct hv_device *hdev)
{
	azb_do_remove(hdev);
}
#else
static int azb_remove(struct hv_device *hdev)
{
	azb_do_remove(hdev);
	return 0;
}
#endif

static const struct hv_vmbus_device_id azb_ids[] = {
	{ .guid = GUID_INIT(0x0590b792, 0xdb64, 0x45cc, 0x81, 0xdb,
			    0xb8, 0xd7, 0x0c, 0x57, 0x7c, 0x9e) },
	{ }
};
MODULE_DEVICE_TABLE(vmbus, azb_ids);

static struct hv_driver azb_driver = {
	.name = KBUILD_MODNAME,
	.id_table = azb_ids,
	.probe = azb_probe,
	.remove = azb_remove,
	.driver = {
		.probe_type = PROBE_PREFER_ASYNCHRONOUS,
	},
};

static int __init azb_init(void)
{
	int ret;

	ret = azb_request_init();
	if (ret)
		return ret;

	azb_debugfs_init();
	ret = vmbus_driver_register(&azb_driver);
	if (ret) {
		azb_debugfs_exit();
		azb_request_exit();
	}
	return ret;
}

static void __exit azb_exit(void)
{
	vmbus_driver_unregister(&azb_driver);
	azb_debugfs_exit();
	azb_request_exit();
}

module_init(azb_init);
module_exit(azb_exit);

MODULE_AUTHOR("The vsc-blob-csi authors");
MODULE_DESCRIPTION("Azure Blob VSC: /dev/azure_blob over VMBus");
MODULE_LICENSE("GPL");
