// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* `lapic_timer_khz=N`: how fast the local APIC's timer counts, for a kernel that would else measure it.
 *
 * Measuring takes a fifth of a second, in which the kernel waits for 25 ticks of one timer and then for as many of
 * another, and comes out wrong if the host is busy meanwhile. The timer that QEMU and KVM have counts nanoseconds,
 * whatever the host. scripts/kernel puts this file beside the kernel's own. */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/param.h>

#include <asm/apic.h>

static int __init lapic_timer_khz(char *text)
{
	unsigned int khz;

	if (!text || kstrtouint(text, 10, &khz))
		return -EINVAL;
	lapic_timer_period = khz / HZ * 1000;
	return 0;
}
early_param("lapic_timer_khz", lapic_timer_khz);
