/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * swhost: a software VMBus host for tests.  Its parts, and the node /dev/swhost
 * through which a program in the guest plays the service behind the device.
 *
 * read() gives the next packet of the guest, raw, and blocks until there is one.
 * write() puts a raw packet into the guest's ring and raises its interrupt.
 */
#ifndef SWHOST_H
#define SWHOST_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * struct swhost_dma - access to guest memory as the host has it, by page numbers
 * @pfns: address of an array of __u64 page frame numbers
 * @npfns: its length
 * @offset: first byte, counted from the start of the first page
 * @buffer: address of the caller's bytes
 * @len: how many
 * @write: 1 writes to the guest's pages, 0 reads them
 *
 * Fails with EPERM on a page that is not pinned or is the shared zero page: a
 * real host would corrupt memory there without a word.
 */
struct swhost_dma {
	__aligned_u64 pfns;
	__u32 npfns;
	__u32 offset;
	__aligned_u64 buffer;
	__u32 len;
	__u32 write;
};

#define SWHOST_DMA	_IOW('m', 1, struct swhost_dma)
/* take the offer back; answers may still be written until the guest closes */
#define SWHOST_RESCIND	_IO('m', 2)
/* offer again; EBUSY until the guest has released the former offer */
#define SWHOST_OFFER	_IO('m', 3)
/* the next OPENCHANNEL is refused */
#define SWHOST_REFUSE	_IO('m', 4)
/*
 * The offer is taken back while the next packet is being sent: after it was
 * written, before the guest's bus looks whether the channel is still there.
 * The ring to the host has to be empty then.
 */
#define SWHOST_AMBUSH	_IO('m', 5)
/* a node of the module's name is there already (1), or is taken away (0) */
#define SWHOST_DECOY	_IOW('m', 6, int)

#ifdef __KERNEL__
int swhost_bus_start(void);
void swhost_bus_stop(void);
void swhost_isr(void);
u64 swhost_signal_event(u16 code, u64 connection);
#endif

#endif /* SWHOST_H */
