// SPDX-License-Identifier: GPL-2.0-only
/*
 * swhost: the kernel's connection.c, with its "signal event" hypercall turned
 * into a call of ours.
 */
#include <linux/hyperv.h>
#include <asm/mshyperv.h>
#include "swhost.h"

#define hv_do_fast_hypercall8 swhost_signal_event
#undef pr_fmt
#include "real/connection.c"
