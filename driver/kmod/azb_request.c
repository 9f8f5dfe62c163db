// SPDX-License-Identifier: GPL-2.0-only
/*
 * azb_vsc: requests.  Pinning, sending, matching the host's answers, and the
 * end of a request, whichever of its two holders lets go last.
 */
#include <linux/bottom_half.h>
#include <linux/limits.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/slab.h>

#include "azb_vsc.h"

/* completions handled before the tasklet gives way */
#define AZB_CALLBACK_BUDGET	64

static struct workqueue_struct *azb_wq;

static void azb_unpin(struct azb_request *req)
{
	int part;

	for (part = 0; part < AZB_PARTS; part++) {
		struct azb_buffer *buf = &req->buf[part];
		struct page **pages = req->pages + buf->first;

		if (part == AZB_REQUEST)
			unpin_user_pages(pages, buf->npinned);
		else
			unpin_user_pages_dirty_lock(pages, buf->npinned,
						    req->sent);
	}
}

static void azb_request_free(struct azb_request *req)
{
	struct azb_dev *dev = req->dev;

	azb_unpin(req);
	atomic_long_sub(req->npages, &dev->pinned);
	kvfree(req->pages);
	kfree(req);
	azb_dev_put(dev);
}

static void azb_release_work(struct work_struct *work)
{
	azb_request_free(container_of(work, struct azb_request, release));
}

static void azb_request_release(struct kref *ref)
{
	azb_request_free(container_of(ref, struct azb_request, ref));
}

/* from the callback: unpinning dirty pages sleeps */
static void azb_release_later(struct kref *ref)
{
	struct azb_request *req = container_of(ref, struct azb_request, ref);

	queue_work(azb_wq, &req->release);
}

/**
 * azb_request_put - drop a reference from a context that may sleep
 * @req: request
 */
void azb_request_put(struct azb_request *req)
{
	kref_put(&req->ref, azb_request_release);
}

static int azb_set_buffer(struct azb_request *req, enum azb_part part,
			  u64 addr, u32 len)
{
	struct azb_buffer *buf = &req->buf[part];
	u64 end;

	buf->first = req->npages;
	if (!len)
		return 0;
	if (check_add_overflow(addr, (u64)len - 1, &end) || end > ULONG_MAX)
		return -EFAULT;

	buf->addr = addr;
	buf->len = len;
	buf->npages = (end >> PAGE_SHIFT) - (addr >> PAGE_SHIFT) + 1;
	req->npages += buf->npages;
	return 0;
}

/*
 * The host writes to response and data, so these are taken with write intent:
 * it breaks copy-on-write now, replaces the shared zero page, refuses read-only
 * memory, and tells a file system that its page changes.
 */
static int azb_pin(struct azb_request *req)
{
	int part;

	for (part = 0; part < AZB_PARTS; part++) {
		struct azb_buffer *buf = &req->buf[part];
		unsigned int flags = FOLL_LONGTERM;
		unsigned long start = buf->addr & PAGE_MASK;

		if (part != AZB_REQUEST)
			flags |= FOLL_WRITE;

		while (buf->npinned < buf->npages) {
			int n;

			n = pin_user_pages_fast(start + ((unsigned long)buf->npinned << PAGE_SHIFT),
						buf->npages - buf->npinned, flags,
						req->pages + buf->first + buf->npinned);
			if (n <= 0)
				return n ?: -EFAULT;
			buf->npinned += n;
		}
	}
	return 0;
}

/**
 * azb_request_create - check a submission and pin its pages
 * @dev: device
 * @u: copy of the submitter's struct
 *
 * Every length is checked, one by one and as a sum of pages, before memory is
 * allocated or a page is touched.
 *
 * Return: a request with one reference, or an error pointer.  -EAGAIN when the
 * device has as many pages pinned as it may.
 */
struct azb_request *azb_request_create(struct azb_dev *dev,
				       const struct azb_request_sync *u)
{
	const u32 max_len = AZB_MAX_PAGES << PAGE_SHIFT;
	struct azb_request *req;
	int ret;

	if (!u->request_len || !u->response_len)
		return ERR_PTR(-EINVAL);
	if (u->data_len && u->data_valid > u->data_len)
		return ERR_PTR(-EINVAL);
	if (u->request_len > max_len || u->response_len > max_len ||
	    u->data_len > max_len)
		return ERR_PTR(-EINVAL);

	req = kzalloc(sizeof(*req), GFP_KERNEL);
	if (!req)
		return ERR_PTR(-ENOMEM);

	kref_init(&req->ref);
	INIT_LIST_HEAD(&req->node);
	init_completion(&req->done);
	INIT_WORK(&req->release, azb_release_work);
	import_guid(&req->guid, u->guid);
	req->timeout = u->timeout;
	req->data_valid = u->data_len ? u->data_valid : 0;

	ret = azb_set_buffer(req, AZB_DATA, u->data_buffer, u->data_len);
	if (!ret)
		ret = azb_set_buffer(req, AZB_REQUEST, u->request_buffer,
				     u->request_len);
	if (!ret)
		ret = azb_set_buffer(req, AZB_RESPONSE, u->response_buffer,
				     u->response_len);
	if (!ret && req->npages > AZB_MAX_PAGES)
		ret = -EINVAL;
	if (ret)
		goto err_free;

	if (atomic_long_add_return(req->npages, &dev->pinned) > dev->pin_limit) {
		ret = -EAGAIN;
		goto err_limit;
	}
	req->pages = kvcalloc(req->npages, sizeof(*req->pages), GFP_KERNEL);
	if (!req->pages) {
		ret = -ENOMEM;
		goto err_limit;
	}

	/* from here on the request frees itself */
	kref_get(&dev->ref);
	req->dev = dev;
	ret = azb_pin(req);
	if (ret) {
		azb_request_put(req);
		return ERR_PTR(ret);
	}
	return req;

err_limit:
	atomic_long_sub(req->npages, &dev->pinned);
err_free:
	kfree(req);
	return ERR_PTR(ret);
}

static void azb_fill_packet(const struct azb_request *req,
			    struct azb_vsp_request *pkt)
{
	const struct azb_buffer *data = &req->buf[AZB_DATA];
	const struct azb_buffer *request = &req->buf[AZB_REQUEST];
	const struct azb_buffer *response = &req->buf[AZB_RESPONSE];

	memset(pkt, 0, sizeof(*pkt));
	pkt->timeout_ms = cpu_to_le32(req->timeout);
	pkt->data_offset = cpu_to_le32(offset_in_page(data->addr));
	pkt->data_len = cpu_to_le32(data->len);
	pkt->data_valid = cpu_to_le32(req->data_valid);
	pkt->operation = cpu_to_le32(AZB_OP_USER_REQUEST);
	pkt->request_offset = cpu_to_le32((request->first << PAGE_SHIFT) +
					  offset_in_page(request->addr));
	pkt->request_len = cpu_to_le32(request->len);
	pkt->response_offset = cpu_to_le32((response->first << PAGE_SHIFT) +
					   offset_in_page(response->addr));
	pkt->response_len = cpu_to_le32(response->len);
	guid_copy(&pkt->transaction, &req->guid);
}

/* takes the request from the host's list; false when somebody else has */
static bool azb_unlist(struct azb_request *req)
{
	struct azb_dev *dev = req->dev;
	bool listed;

	spin_lock_bh(&dev->lock);
	listed = req->listed;
	if (listed) {
		req->listed = false;
		list_del_init(&req->node);
		if (list_empty(&dev->pending))
			wake_up(&dev->drained);
	}
	spin_unlock_bh(&dev->lock);
	return listed;
}

static int azb_post(struct azb_request *req, struct vmbus_packet_mpb_array *desc)
{
	struct azb_dev *dev = req->dev;
	struct azb_vsp_request pkt;
	size_t size;
	u32 i;

	/* nobody else sets it: kernels since 6.15 and stable ones leave it */
	desc->rangecount = 1;
	desc->range.len = req->npages << PAGE_SHIFT;
	desc->range.offset = 0;
	for (i = 0; i < req->npages; i++)
		desc->range.pfn_array[i] = page_to_pfn(req->pages[i]);

	azb_fill_packet(req, &pkt);
	size = struct_size(desc, range.pfn_array, req->npages);
	return vmbus_sendpacket_mpb_desc(dev->hdev->channel, desc, size, &pkt,
					 sizeof(pkt), (unsigned long)req);
}

/**
 * azb_request_send - hand a request to the host
 * @req: request, not sent before
 *
 * Return: 0 when the host has it and the request will be finished, or
 * -EAGAIN: the ring or the table of request ids is full, try again later;
 * -ENODEV: the device is going or gone;
 * -ENOMEM: no memory for the page list.
 */
int azb_request_send(struct azb_request *req)
{
	struct vmbus_packet_mpb_array *desc;
	struct azb_dev *dev = req->dev;
	int ret = -ENODEV;

	/* up to 64 KiB: a fragmented node must not fail here */
	desc = kvzalloc(struct_size(desc, range.pfn_array, req->npages),
			GFP_KERNEL);
	if (!desc)
		return -ENOMEM;

	down_read(&dev->gate);
	if (dev->removing || READ_ONCE(dev->hdev->channel->rescind))
		goto out;

	/* listed first: the answer can be here before the call returns */
	kref_get(&req->ref);
	req->sent = true;
	req->since = ktime_get();
	spin_lock_bh(&dev->lock);
	req->listed = true;
	list_add_tail(&req->node, &dev->pending);
	spin_unlock_bh(&dev->lock);

	ret = azb_post(req, desc);
	if (!ret || !azb_unlist(req)) {
		ret = 0;
		goto out;
	}

	if (ret == -ENODEV) {
		/*
		 * A rescind may have been noticed after the packet was written.
		 * Keep the host's reference until the channel is closed.
		 */
		spin_lock_bh(&dev->lock);
		list_add_tail(&req->node, &dev->revoked);
		spin_unlock_bh(&dev->lock);
	} else {
		req->sent = false;
		azb_request_put(req);
	}
out:
	up_read(&dev->gate);
	kvfree(desc);
	return ret;
}

/**
 * azb_request_finish - the host is done with a request
 * @req: request, off the list; the host's reference is dropped
 * @error: 0 or a negative errno for the submitter
 * @answer: what the host said, or NULL
 *
 * May be called where sleeping is not allowed.
 */
void azb_request_finish(struct azb_request *req, int error,
			const struct azb_answer *answer)
{
	struct io_uring_cmd *cmd;

	req->error = error;
	if (answer)
		req->answer = *answer;

	cmd = xchg(&req->cmd, NULL);
	if (cmd)
		azb_uring_complete(cmd);
	else
		complete(&req->done);
	kref_put(&req->ref, azb_release_later);
}

/**
 * azb_id_get - a request id for the host; called by the bus with the ring locked
 * @channel: channel
 * @addr: the request
 *
 * Ids go round: one is used again after four thousand million requests, so a
 * second answer, or one that comes too late, meets no other request.  The bus
 * driver's own table hands the last id out first.
 *
 * Return: the id, or VMBUS_RQST_ERROR, which the sender sees as -EAGAIN.
 */
u64 azb_id_get(struct vmbus_channel *channel, u64 addr)
{
	struct azb_request *req = (struct azb_request *)(unsigned long)addr;
	struct azb_dev *dev = req->dev;
	unsigned long flags;
	int ret = -EBUSY;
	u32 id;

	xa_lock_irqsave(&dev->ids, flags);
	if (dev->nr_ids < AZB_QUEUE_DEPTH)
		ret = __xa_alloc_cyclic(&dev->ids, &id, req,
					XA_LIMIT(1, U32_MAX),
					&dev->next_id, GFP_ATOMIC);
	if (ret >= 0)
		dev->nr_ids++;
	xa_unlock_irqrestore(&dev->ids, flags);
	return ret < 0 ? VMBUS_RQST_ERROR : id;
}

/**
 * azb_id_put - give an id back
 * @channel: channel
 * @id: what the host says, any value
 *
 * Return: the request, or VMBUS_RQST_ERROR if the host does not hold such an id.
 */
u64 azb_id_put(struct vmbus_channel *channel, u64 id)
{
	struct azb_dev *dev = hv_get_drvdata(channel->device_obj);
	struct azb_request *req;
	unsigned long flags;

	if (id > U32_MAX)
		return VMBUS_RQST_ERROR;

	xa_lock_irqsave(&dev->ids, flags);
	req = __xa_erase(&dev->ids, id);
	if (req)
		dev->nr_ids--;
	xa_unlock_irqrestore(&dev->ids, flags);
	return req ? (unsigned long)req : VMBUS_RQST_ERROR;
}

static void azb_on_completion(struct azb_dev *dev,
			      struct vmbus_channel *channel,
			      const struct vmpacket_descriptor *desc)
{
	const struct azb_vsp_response *rsp = hv_pkt_data(desc);
	struct device *log = &dev->hdev->device;
	struct azb_answer answer;
	struct azb_request *req;
	u64 addr;

	addr = azb_id_put(channel, desc->trans_id);
	if (addr == VMBUS_RQST_ERROR) {
		dev_warn_ratelimited(log, "answer to unknown request %llu\n",
				     desc->trans_id);
		return;
	}
	req = (struct azb_request *)(unsigned long)addr;
	/* the id has been given back: only one answer can come here */
	if (!azb_unlist(req))
		return;

	/*
	 * A completion that says nothing sensible still ends the request: the
	 * host gave its id back, no second answer will be accepted.
	 */
	if (hv_pkt_datalen(desc) < sizeof(*rsp)) {
		dev_warn_ratelimited(log, "answer of %u bytes, need %zu\n",
				     hv_pkt_datalen(desc), sizeof(*rsp));
		azb_request_finish(req, -EPROTO, NULL);
		return;
	}

	answer.status = le32_to_cpu(rsp->status);
	answer.response_len = le32_to_cpu(rsp->response_len);
	if (answer.response_len > req->buf[AZB_RESPONSE].len) {
		dev_warn_ratelimited(log, "answer of %u bytes in a buffer of %u\n",
				     answer.response_len,
				     req->buf[AZB_RESPONSE].len);
		azb_request_finish(req, -EPROTO, NULL);
		return;
	}
	azb_request_finish(req, 0, &answer);
}

/* returns the number of packets read, the budget at most */
static int azb_read_ring(struct azb_dev *dev, struct vmbus_channel *channel)
{
	const struct vmpacket_descriptor *desc;
	int done = 0;

	desc = hv_pkt_iter_first(channel);
	if (!desc)
		return 0;
	while (desc && done < AZB_CALLBACK_BUDGET) {
		if (desc->type == VM_PKT_COMP)
			azb_on_completion(dev, channel, desc);
		else
			dev_warn_ratelimited(&dev->hdev->device,
					     "packet of unknown type %u\n",
					     desc->type);
		done++;
		desc = __hv_pkt_iter_next(channel, desc);
	}
	hv_pkt_iter_close(channel);
	return done;
}

/**
 * azb_channel_callback - the host has written to the ring
 * @context: device
 *
 * Runs in a tasklet.  What exceeds the budget stays in the ring, and the core
 * calls again because it finds it there.
 */
void azb_channel_callback(void *context)
{
	struct azb_dev *dev = context;

	azb_read_ring(dev, dev->hdev->channel);
}

/**
 * azb_channel_drain - read the ring when no callback will
 * @dev: device
 * @channel: rescinded channel, its callback has been taken away
 */
void azb_channel_drain(struct azb_dev *dev, struct vmbus_channel *channel)
{
	int done;

	do {
		local_bh_disable();
		done = azb_read_ring(dev, channel);
		local_bh_enable();
		cond_resched();
	} while (done == AZB_CALLBACK_BUDGET);
}

/**
 * azb_fail_all - end what the host never answered
 * @dev: device, its channel closed
 */
void azb_fail_all(struct azb_dev *dev)
{
	struct azb_request *req;

	for (;;) {
		spin_lock_bh(&dev->lock);
		req = list_first_entry_or_null(&dev->pending,
					       struct azb_request, node);
		if (req)
			req->listed = false;
		else
			req = list_first_entry_or_null(&dev->revoked,
						       struct azb_request, node);
		if (req)
			list_del_init(&req->node);
		spin_unlock_bh(&dev->lock);
		if (!req)
			return;
		azb_request_finish(req, -ENODEV, NULL);
	}
}

int azb_request_init(void)
{
	azb_wq = alloc_workqueue(KBUILD_MODNAME, WQ_UNBOUND, 0);
	return azb_wq ? 0 : -ENOMEM;
}

void azb_request_exit(void)
{
	destroy_workqueue(azb_wq);
}
