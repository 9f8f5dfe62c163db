// SPDX-License-Identifier: GPL-2.0-only
/*
 * swhost: the kernel's vmbus_drv.c without its entry (it asks ACPI and CPUID for
 * Hyper-V) and exit, and the start and stop that stand in for them.
 */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/version.h>

#undef subsys_initcall
#define subsys_initcall(fn)
#undef module_exit
#define module_exit(fn)
#undef pr_fmt
#include "real/vmbus_drv.c"
#include "swhost.h"

static struct acpi_device *root;

void swhost_isr(void)
{
	vmbus_isr();
}

static void root_release(struct device *dev)
{
	kfree(root);
	root = NULL;
}

int swhost_bus_start(void)
{
	int ret;

	root = kzalloc(sizeof(*root), GFP_KERNEL);
	if (!root)
		return -ENOMEM;
	device_initialize(&root->dev);
	root->dev.release = root_release;
	dev_set_name(&root->dev, "swhost-root");
	ret = device_add(&root->dev);
	if (ret)
		goto err_put;

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
	hv_dev = &root->dev;
#else
	hv_acpi_dev = root;
#endif
	vmbus_irq = -1;
	ret = vmbus_bus_init();
	if (ret)
		goto err_del;
	/* on a panic it would wait 100 s for an answer */
	atomic_notifier_chain_unregister(&panic_notifier_list,
					 &hyperv_panic_vmbus_unload_block);
	return 0;

err_del:
	device_del(&root->dev);
err_put:
	put_device(&root->dev);
	return ret;
}

void swhost_bus_stop(void)
{
	int cpu;

	vmbus_disconnect();
	hv_remove_vmbus_handler();
	for_each_online_cpu(cpu)
		tasklet_kill(&per_cpu_ptr(hv_context.cpu_context, cpu)->msg_dpc);
	vmbus_free_channels();
	kfree(vmbus_connection.channels);
	bus_unregister(&hv_bus);
	cpuhp_remove_state(hyperv_cpuhp_online);
	hv_synic_free();
	device_unregister(&root->dev);
}
