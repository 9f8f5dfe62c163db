// SPDX-License-Identifier: GPL-2.0-only
/*
 * swhost: the host itself, in place of the kernel's hv.c.  Hypercalls end here,
 * control messages are answered, rings are mapped by their page numbers and
 * interrupts raised in hard-interrupt context through the real handler.
 *
 * It offers one device, of the Azure Blob class.
 */
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/hyperv.h>
#include <linux/irq_work.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/mshyperv.h>
#include "hyperv_vmbus.h"
#include "swhost.h"

#define RELID		5
#define CONNECTION	0x1005
#define GPADLS		8

struct gpadl {
	u32 id;
	u32 npages;
	u32 got;
	u64 *pfns;
};

struct ring {
	struct hv_ring_buffer *hdr;
	u32 size;		/* bytes of data */
};

enum offer_state { OFFER_NONE, OFFER_MADE, OFFER_RESCINDED };

struct hv_context hv_context;
static u32 vp_index[NR_CPUS];
u32 *swhost_vp_index = vp_index;

static struct workqueue_struct *host_wq;
static DECLARE_WAIT_QUEUE_HEAD(doorbell);
static DEFINE_MUTEX(host_lock);	/* all below */
static enum offer_state offer_state;
static struct gpadl gpadls[GPADLS];
static struct ring to_host, to_guest;
static bool is_open;
static u32 open_vp;
static bool refuse_open;
static bool ambush;		/* taken by whoever springs it */

/*
 * Interrupts.  The per-CPU works are set up at run time: the per-CPU section of
 * a module gets no relocations, so an initializer would leave the function NULL.
 */
static DEFINE_PER_CPU(struct irq_work, isr_work);

static void isr_by_work(struct irq_work *work)
{
	swhost_isr();
}

static void isr_by_ipi(void *unused)
{
	swhost_isr();
}

static void raise_interrupt(int cpu)
{
	if (get_cpu() == cpu)
		irq_work_queue(this_cpu_ptr(&isr_work));
	else
		smp_call_function_single(cpu, isr_by_ipi, NULL, 0);
	put_cpu();
}

/* Control messages: one slot, in the message page of the connect CPU. */
static void send_message(const void *payload, size_t len)
{
	struct hv_per_cpu_context *ctx =
		per_cpu_ptr(hv_context.cpu_context, VMBUS_CONNECT_CPU);
	struct hv_message *msg =
		(struct hv_message *)ctx->synic_message_page + VMBUS_MESSAGE_SINT;

	while (READ_ONCE(msg->header.message_type) != HVMSG_NONE)
		usleep_range(50, 100);
	memcpy(msg->u.payload, payload, len);
	msg->header.payload_size = len;
	msg->header.message_flags.asu8 = 0;
	smp_store_release(&msg->header.message_type, 1);
	raise_interrupt(VMBUS_CONNECT_CPU);
}

static void send_offer(void)
{
	struct vmbus_channel_offer_channel offer = {
		.header.msgtype = CHANNELMSG_OFFERCHANNEL,
		.child_relid = RELID,
		.connection_id = CONNECTION,
		.is_dedicated_interrupt = 1,
	};

	offer.offer.if_type = GUID_INIT(0x0590b792, 0xdb64, 0x45cc, 0x81, 0xdb,
					0xb8, 0xd7, 0x0c, 0x57, 0x7c, 0x9e);
	offer.offer.if_instance = GUID_INIT(0x7e57ab1e, 0x0001, 0x4000, 0x80,
					    0, 0, 0, 0, 0, 0, 1);
	offer_state = OFFER_MADE;
	send_message(&offer, sizeof(offer));
}

static struct gpadl *find_gpadl(u32 id)
{
	int i;

	for (i = 0; i < GPADLS; i++)
		if (gpadls[i].pfns && gpadls[i].id == id)
			return &gpadls[i];
	return NULL;
}

static struct gpadl *new_gpadl(u32 id, u32 npages)
{
	int i;

	for (i = 0; i < GPADLS; i++) {
		struct gpadl *g = &gpadls[i];

		if (g->pfns)
			continue;
		g->pfns = kvcalloc(npages, sizeof(u64), GFP_KERNEL);
		g->id = id;
		g->npages = npages;
		g->got = 0;
		return g->pfns ? g : NULL;
	}
	return NULL;
}

static void drop_gpadl(struct gpadl *g)
{
	kvfree(g->pfns);
	g->pfns = NULL;
}

static void add_pfns(struct gpadl *g, const u64 *pfns, u32 n)
{
	n = min(n, g->npages - g->got);
	memcpy(g->pfns + g->got, pfns, n * sizeof(u64));
	g->got += n;

	if (g->got == g->npages) {
		struct vmbus_channel_gpadl_created created = {
			.header.msgtype = CHANNELMSG_GPADL_CREATED,
			.child_relid = RELID,
			.gpadl = g->id,
		};

		send_message(&created, sizeof(created));
	}
}

/* the header page, then the data pages twice: a packet never wraps */
static int map_ring(struct ring *ring, const u64 *pfns, u32 n)
{
	struct page **pages;
	u32 i;

	pages = kcalloc(2 * n - 1, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;
	pages[0] = pfn_to_page(pfns[0]);
	for (i = 0; i < 2 * (n - 1); i++)
		pages[i + 1] = pfn_to_page(pfns[i % (n - 1) + 1]);
	ring->hdr = vmap(pages, 2 * n - 1, VM_MAP, PAGE_KERNEL);
	ring->size = (n - 1) << PAGE_SHIFT;
	kfree(pages);
	return ring->hdr ? 0 : -ENOMEM;
}

static void close_rings(void)
{
	is_open = false;
	vunmap(to_host.hdr);
	vunmap(to_guest.hdr);
	to_host.hdr = NULL;
	to_guest.hdr = NULL;
}

static void open_channel(const struct vmbus_channel_open_channel *req)
{
	struct vmbus_channel_open_result result = {
		.header.msgtype = CHANNELMSG_OPENCHANNEL_RESULT,
		.child_relid = req->child_relid,
		.openid = req->openid,
	};
	struct gpadl *g = find_gpadl(req->ringbuffer_gpadlhandle);
	u32 split = req->downstream_ringbuffer_pageoffset;

	if (refuse_open) {
		refuse_open = false;
		result.status = 1;
	} else if (!g || map_ring(&to_host, g->pfns, split) ||
	    map_ring(&to_guest, g->pfns + split, g->npages - split)) {
		close_rings();
		result.status = 1;
	} else {
		open_vp = req->target_vp;
		is_open = true;
	}
	send_message(&result, sizeof(result));
}

static void on_message(const void *payload, size_t len)
{
	const struct vmbus_channel_message_header *hdr = payload;
	struct gpadl *g;
	int i;

	switch (hdr->msgtype) {
	case CHANNELMSG_INITIATE_CONTACT: {
		struct vmbus_channel_version_response rsp = {
			.header.msgtype = CHANNELMSG_VERSION_RESPONSE,
			.version_supported = 1,
			.msg_conn_id = VMBUS_MESSAGE_CONNECTION_ID_4,
		};

		send_message(&rsp, sizeof(rsp));
		break;
	}
	case CHANNELMSG_REQUESTOFFERS: {
		struct vmbus_channel_message_header rsp = {
			.msgtype = CHANNELMSG_ALLOFFERS_DELIVERED,
		};

		send_offer();
		send_message(&rsp, sizeof(rsp));
		break;
	}
	case CHANNELMSG_GPADL_HEADER: {
		const struct vmbus_channel_gpadl_header *m = payload;

		g = new_gpadl(m->gpadl, PFN_UP(m->range[0].byte_count));
		if (!WARN_ON(!g))
			add_pfns(g, m->range[0].pfn_array,
				 (len - sizeof(*m) - sizeof(m->range[0])) / 8);
		break;
	}
	case CHANNELMSG_GPADL_BODY: {
		const struct vmbus_channel_gpadl_body *m = payload;

		g = find_gpadl(m->gpadl);
		if (!WARN_ON(!g))
			add_pfns(g, m->pfn, (len - sizeof(*m)) / 8);
		break;
	}
	case CHANNELMSG_GPADL_TEARDOWN: {
		const struct vmbus_channel_gpadl_teardown *m = payload;
		struct vmbus_channel_gpadl_torndown rsp = {
			.header.msgtype = CHANNELMSG_GPADL_TORNDOWN,
			.gpadl = m->gpadl,
		};

		g = find_gpadl(m->gpadl);
		if (g)
			drop_gpadl(g);
		send_message(&rsp, sizeof(rsp));
		break;
	}
	case CHANNELMSG_OPENCHANNEL:
		open_channel(payload);
		break;
	case CHANNELMSG_CLOSECHANNEL:
		close_rings();
		break;
	case CHANNELMSG_RELID_RELEASED:
		/* no teardown comes for a rescinded channel */
		for (i = 0; i < GPADLS; i++)
			drop_gpadl(&gpadls[i]);
		offer_state = OFFER_NONE;
		break;
	case CHANNELMSG_UNLOAD: {
		struct vmbus_channel_message_header rsp = {
			.msgtype = CHANNELMSG_UNLOAD_RESPONSE,
		};

		send_message(&rsp, sizeof(rsp));
		break;
	}
	default:
		break;
	}
}

struct host_message {
	struct work_struct work;
	size_t len;
	u8 payload[] __aligned(8);
};

static void message_work(struct work_struct *work)
{
	struct host_message *m = container_of(work, struct host_message, work);

	mutex_lock(&host_lock);
	on_message(m->payload, m->len);
	mutex_unlock(&host_lock);
	wake_up_all(&doorbell);
	kfree(m);
}

/* What hv.c gives to the rest of the driver. */
int hv_init(void)
{
	hv_context.cpu_context = alloc_percpu(struct hv_per_cpu_context);
	return hv_context.cpu_context ? 0 : -ENOMEM;
}

int hv_post_message(union hv_connection_id id, enum hv_message_type type,
		    void *payload, size_t len)
{
	struct host_message *m;

	if (len > HV_MESSAGE_PAYLOAD_BYTE_COUNT)
		return -EMSGSIZE;
	m = kmalloc(sizeof(*m) + len, GFP_ATOMIC);
	if (!m)
		return HV_STATUS_INSUFFICIENT_BUFFERS;
	m->len = len;
	memcpy(m->payload, payload, len);
	INIT_WORK(&m->work, message_work);
	queue_work(host_wq, &m->work);
	return HV_STATUS_SUCCESS;
}

int hv_synic_alloc(void)
{
	int cpu;

	hv_context.hv_numa_map = kcalloc(nr_node_ids, sizeof(struct cpumask),
					 GFP_KERNEL);
	if (!hv_context.hv_numa_map)
		return -ENOMEM;
	for_each_present_cpu(cpu) {
		struct hv_per_cpu_context *ctx =
			per_cpu_ptr(hv_context.cpu_context, cpu);

		tasklet_init(&ctx->msg_dpc, vmbus_on_msg_dpc, (unsigned long)ctx);
		ctx->synic_message_page = (void *)get_zeroed_page(GFP_KERNEL);
		ctx->synic_event_page = (void *)get_zeroed_page(GFP_KERNEL);
		ctx->post_msg_page = (void *)get_zeroed_page(GFP_KERNEL);
		if (!ctx->synic_message_page || !ctx->synic_event_page ||
		    !ctx->post_msg_page)
			return -ENOMEM;
		vp_index[cpu] = cpu;
	}
	return 0;
}

void hv_synic_free(void)
{
	int cpu;

	for_each_present_cpu(cpu) {
		struct hv_per_cpu_context *ctx =
			per_cpu_ptr(hv_context.cpu_context, cpu);

		free_page((unsigned long)ctx->synic_event_page);
		free_page((unsigned long)ctx->synic_message_page);
		free_page((unsigned long)ctx->post_msg_page);
	}
	kfree(hv_context.hv_numa_map);
	free_percpu(hv_context.cpu_context);
}

void hv_synic_enable_regs(unsigned int cpu)
{
}

void hv_synic_disable_regs(unsigned int cpu)
{
}

int hv_synic_init(unsigned int cpu)
{
	return 0;
}

int hv_synic_cleanup(unsigned int cpu)
{
	return 0;
}

static int rescind(void)
{
	struct vmbus_channel_rescind_offer rescind = {
		.header.msgtype = CHANNELMSG_RESCIND_CHANNELOFFER,
		.child_relid = RELID,
	};

	if (offer_state != OFFER_MADE)
		return -ENODEV;
	offer_state = OFFER_RESCINDED;
	send_message(&rescind, sizeof(rescind));
	return 0;
}

static void ambush_work(struct work_struct *work)
{
	mutex_lock(&host_lock);
	rescind();
	mutex_unlock(&host_lock);
}

static DECLARE_WORK(ambush_now, ambush_work);

/* called by the sender of a packet, where it may sleep */
u64 swhost_signal_event(u16 code, u64 connection)
{
	if (xchg(&ambush, false)) {
		struct vmbus_channel *channel = relid2channel(RELID);

		queue_work(host_wq, &ambush_now);
		/* the bus marks the channel before it removes the device */
		while (channel && !READ_ONCE(channel->rescind))
			usleep_range(50, 100);
	}
	wake_up_all(&doorbell);
	return 0;
}

/* The node. */
static bool has_packet(void)
{
	bool has;

	mutex_lock(&host_lock);
	has = is_open && smp_load_acquire(&to_host.hdr->write_index) !=
			 to_host.hdr->read_index;
	mutex_unlock(&host_lock);
	return has;
}

static ssize_t swhost_read(struct file *file, char __user *buf, size_t n,
			   loff_t *pos)
{
	struct vmpacket_descriptor *desc;
	ssize_t ret = -EAGAIN;
	u32 len, next;

	do {
		DEFINE_WAIT_FUNC(wait, woken_wake_function);

		add_wait_queue(&doorbell, &wait);
		while (!has_packet() && !signal_pending(current))
			wait_woken(&wait, TASK_INTERRUPTIBLE, MAX_SCHEDULE_TIMEOUT);
		remove_wait_queue(&doorbell, &wait);
		if (signal_pending(current))
			return -ERESTARTSYS;

		mutex_lock(&host_lock);
		if (is_open && smp_load_acquire(&to_host.hdr->write_index) !=
			       to_host.hdr->read_index) {
			desc = (void *)to_host.hdr->buffer + to_host.hdr->read_index;
			len = desc->len8 << 3;
			if (len > n)
				ret = -EMSGSIZE;
			else if (copy_to_user(buf, desc, len))
				ret = -EFAULT;
			else
				ret = len;
			next = to_host.hdr->read_index + len + sizeof(u64);
			smp_store_release(&to_host.hdr->read_index,
					  next % to_host.size);
		}
		mutex_unlock(&host_lock);
	} while (ret == -EAGAIN);
	return ret;
}

static ssize_t put_packet(const char __user *buf, size_t n)
{
	struct hv_per_cpu_context *ctx;
	union hv_synic_event_flags *event;
	struct hv_ring_buffer *hdr;
	u32 write, read, room;
	u64 trailer;

	if (!is_open)
		return -ENODEV;
	hdr = to_guest.hdr;
	write = hdr->write_index;
	read = smp_load_acquire(&hdr->read_index);
	room = write >= read ? to_guest.size - (write - read) : read - write;
	if (n % sizeof(u64))
		return -EINVAL;
	if (room <= n + sizeof(u64))
		return -EAGAIN;

	if (copy_from_user(hdr->buffer + write, buf, n))
		return -EFAULT;
	trailer = (u64)write << 32;
	memcpy(hdr->buffer + write + n, &trailer, sizeof(trailer));
	virt_mb();
	smp_store_release(&hdr->write_index,
			  (write + (u32)n + (u32)sizeof(u64)) % to_guest.size);
	virt_mb();

	if (!READ_ONCE(hdr->interrupt_mask)) {
		ctx = per_cpu_ptr(hv_context.cpu_context, open_vp);
		event = (union hv_synic_event_flags *)ctx->synic_event_page +
			VMBUS_MESSAGE_SINT;
		sync_set_bit(RELID, event->flags);
		raise_interrupt(open_vp);
	}
	return n;
}

static ssize_t swhost_write(struct file *file, const char __user *buf, size_t n,
			    loff_t *pos)
{
	ssize_t ret;

	mutex_lock(&host_lock);
	ret = put_packet(buf, n);
	mutex_unlock(&host_lock);
	return ret;
}

static int dma_page(u64 pfn, u32 offset, u32 len, void __user *buf, bool write)
{
	struct page *page;
	void *at;

	if (!pfn_valid(pfn))
		return -EINVAL;
	page = pfn_to_page(pfn);
	if (is_zero_pfn(pfn)) {
		pr_notice("swhost: the shared zero page was given to the host\n");
		return -EPERM;
	}
	if (!folio_maybe_dma_pinned(page_folio(page))) {
		pr_notice("swhost: access to a page that is not pinned\n");
		return -EPERM;
	}
	at = page_address(page) + offset;
	if (write ? copy_from_user(at, buf, len) : copy_to_user(buf, at, len))
		return -EFAULT;
	return 0;
}

static int do_dma(const struct swhost_dma *dma)
{
	u32 done = 0, at = dma->offset;
	int ret = 0;
	u64 *pfns;

	if (!dma->npfns || dma->npfns > 16384)
		return -EINVAL;
	if ((u64)dma->offset + dma->len > (u64)dma->npfns << PAGE_SHIFT)
		return -EINVAL;
	pfns = vmemdup_user(u64_to_user_ptr(dma->pfns), dma->npfns * sizeof(u64));
	if (IS_ERR(pfns))
		return PTR_ERR(pfns);

	while (done < dma->len && !ret) {
		u32 n = min_t(u32, dma->len - done, PAGE_SIZE - offset_in_page(at));

		ret = dma_page(pfns[at >> PAGE_SHIFT], offset_in_page(at), n,
			       u64_to_user_ptr(dma->buffer + done), dma->write);
		done += n;
		at += n;
		cond_resched();
	}
	kvfree(pfns);
	return ret;
}

static const struct file_operations decoy_fops = {
	.owner = THIS_MODULE,
};

static struct miscdevice decoy_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "azure_blob",
	.fops = &decoy_fops,
};

static DEFINE_MUTEX(decoy_lock);
static bool decoy;

static int set_decoy(bool on)
{
	int ret = 0;

	mutex_lock(&decoy_lock);
	if (on && !decoy)
		ret = misc_register(&decoy_misc);
	else if (!on && decoy)
		misc_deregister(&decoy_misc);
	if (!ret)
		decoy = on;
	mutex_unlock(&decoy_lock);
	return ret;
}

static long swhost_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct swhost_dma dma;
	int ret = 0;

	switch (cmd) {
	case SWHOST_DMA:
		if (copy_from_user(&dma, (void __user *)arg, sizeof(dma)))
			return -EFAULT;
		return do_dma(&dma);
	case SWHOST_RESCIND:
		mutex_lock(&host_lock);
		ret = rescind();
		mutex_unlock(&host_lock);
		return ret;
	case SWHOST_OFFER:
		mutex_lock(&host_lock);
		if (offer_state == OFFER_NONE)
			send_offer();
		else
			ret = -EBUSY;
		mutex_unlock(&host_lock);
		return ret;
	case SWHOST_REFUSE:
		mutex_lock(&host_lock);
		refuse_open = true;
		mutex_unlock(&host_lock);
		return 0;
	case SWHOST_AMBUSH:
		WRITE_ONCE(ambush, true);
		return 0;
	case SWHOST_DECOY: {
		int on;

		if (get_user(on, (int __user *)arg))
			return -EFAULT;
		return set_decoy(on);
	}
	}
	return -ENOTTY;
}

static const struct file_operations swhost_fops = {
	.owner = THIS_MODULE,
	.read = swhost_read,
	.write = swhost_write,
	.unlocked_ioctl = swhost_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice swhost_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "swhost",
	.fops = &swhost_fops,
};

static int __init swhost_init(void)
{
	int ret, cpu;

	for_each_possible_cpu(cpu)
		per_cpu(isr_work, cpu) = IRQ_WORK_INIT_HARD(isr_by_work);
	host_wq = alloc_ordered_workqueue("swhost", 0);
	if (!host_wq)
		return -ENOMEM;
	ret = swhost_bus_start();
	if (ret)
		goto err_wq;
	ret = misc_register(&swhost_misc);
	if (ret)
		goto err_bus;
	return 0;

err_bus:
	swhost_bus_stop();
err_wq:
	destroy_workqueue(host_wq);
	return ret;
}

static void __exit swhost_exit(void)
{
	int i;

	misc_deregister(&swhost_misc);
	set_decoy(false);
	swhost_bus_stop();
	destroy_workqueue(host_wq);
	for (i = 0; i < GPADLS; i++)
		drop_gpadl(&gpadls[i]);
}

module_init(swhost_init);
module_exit(swhost_exit);

/* real/vmbus_drv.c states description and license */
