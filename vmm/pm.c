// SPDX-License-Identifier: Apache-2.0
/* Power management; see pm.h. Registers: ACPI 6.4 §4.8. */
#include "vmm/pm.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/irq.h"
#include "vmm/vm.h"

#define PM_SIZE GW_PM_PORTS
#define GPE_STATUS (GW_PM_GPE0 - GW_PM1_EVENT)
#define GPE_ENABLE (GPE_STATUS + GW_PM_GPE0_SIZE / 2)
#define TIMER_HZ 3579545ull /* §4.8.3.3 */

#define STS_PWRBTN 0x0100u
#define STS_ALL 0xcd31u     /* bits that software clears by writing ones */
#define EN_ALL 0x4721u
#define GPE_ALL GW_PM_GPE_GENID
#define CNT_SCI_EN 0x0001u
#define CNT_SLP_TYP(cnt) ((cnt) >> 10 & 7)
#define CNT_SLP_EN 0x2000u
#define CNT_KEPT 0x1c07u    /* SLP_EN and GBL_RLS are write-only */

struct gw_pm {
	struct gw_vm *vm;
	pthread_mutex_t lock;
	uint16_t status;
	uint16_t enable;
	uint16_t control;
	uint16_t gpe_status;
	uint16_t gpe_enable;
	uint64_t timer_base; /* ticks to add to the monotonic clock's */
	uint32_t timer;      /* the counter when saved */
};

static const struct gw_state_field fields[] = {
	GW_STATE_UINT(struct gw_pm, status, 1),
	GW_STATE_UINT(struct gw_pm, enable, 1),
	GW_STATE_UINT(struct gw_pm, control, 1),
	GW_STATE_UINT(struct gw_pm, timer, 1),
	GW_STATE_UINT(struct gw_pm, gpe_status, 2),
	GW_STATE_UINT(struct gw_pm, gpe_enable, 2),
	{ }
};
static const struct gw_state_desc desc = { "pm", 2, 1, fields };

static uint64_t host_ticks(void)
{
	return (uint64_t)((unsigned __int128)gw_now_ns() * TIMER_HZ / GW_NS_PER_SEC);
}

/* Level-triggered (the MADT says so); under the lock. */
static void update_sci(struct gw_pm *pm)
{
	bool event = (pm->status & pm->enable) || (pm->gpe_status & pm->gpe_enable);

	gw_irq_set_line(pm->vm, GW_PM_SCI, (pm->control & CNT_SCI_EN) && event);
}

/* The registers as the bytes that the ports show; under the lock. */
static void image(const struct gw_pm *pm, uint8_t out[PM_SIZE])
{
	memset(out, 0, PM_SIZE);
	gw_put_le16(out, pm->status);
	gw_put_le16(out + 2, pm->enable);
	gw_put_le16(out + 4, pm->control);
	gw_put_le32(out + 8, (uint32_t)(host_ticks() + pm->timer_base));
	gw_put_le16(out + GPE_STATUS, pm->gpe_status);
	gw_put_le16(out + GPE_ENABLE, pm->gpe_enable);
}

static void pm_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct gw_pm *pm = dev;
	uint8_t regs[PM_SIZE];

	pthread_mutex_lock(&pm->lock);
	image(pm, regs);
	pthread_mutex_unlock(&pm->lock);
	memcpy(data, regs + offset, len);
}

static void write_control(struct gw_pm *pm, uint16_t value)
{
	/* There is no SMI: the machine is in ACPI mode from the start and stays so. */
	pm->control = (value & CNT_KEPT) | CNT_SCI_EN;
	if ((value & CNT_SLP_EN) && CNT_SLP_TYP(value) == GW_PM_S5_TYPE)
		gw_vm_post_event(pm->vm, GW_VM_POWEROFF, "the guest powered off");
}

static void pm_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct gw_pm *pm = dev;
	uint8_t regs[PM_SIZE];
	bool touched[PM_SIZE] = { false };

	pthread_mutex_lock(&pm->lock);
	image(pm, regs);
	/* Status bits are cleared by ones; bytes that were not written must not clear any. */
	gw_put_le16(regs, 0);
	gw_put_le16(regs + GPE_STATUS, 0);
	memcpy(regs + offset, data, len);
	memset(touched + offset, true, len);
	pm->status &= (uint16_t)~(gw_get_le16(regs) & STS_ALL);
	pm->enable = gw_get_le16(regs + 2) & EN_ALL;
	pm->gpe_status &= (uint16_t)~gw_get_le16(regs + GPE_STATUS);
	pm->gpe_enable = gw_get_le16(regs + GPE_ENABLE) & GPE_ALL;
	if (touched[4] || touched[5])
		write_control(pm, gw_get_le16(regs + 4));
	update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
	if (touched[GW_PM_RESET - GW_PM1_EVENT] && (regs[GW_PM_RESET - GW_PM1_EVENT] & 0x04))
		gw_vm_post_event(pm->vm, GW_VM_RESET, "the guest asked for a reset");
}

static const struct gw_bus_ops pm_bus = { .read = pm_read, .write = pm_write };

/*
 * Ports 0x60 and 0x64: no keyboard, an idle controller. Command 0xfe pulses the processor's reset line, by which kernels
 * reboot where they know nothing better.
 */
static void kbd_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	memset(data, 0, len);
}

static void kbd_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct gw_pm *pm = dev;

	if (offset == 4 && *(const uint8_t *)data == 0xfe)
		gw_vm_post_event(pm->vm, GW_VM_RESET, "the guest asked for a reset (keyboard controller)");
}

static const struct gw_bus_ops kbd_bus = { .read = kbd_read, .write = kbd_write };

void gw_pm_power_button(struct gw_pm *pm)
{
	pthread_mutex_lock(&pm->lock);
	pm->status |= STS_PWRBTN;
	update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
}

void gw_pm_raise(struct gw_pm *pm, uint16_t gpe)
{
	pthread_mutex_lock(&pm->lock);
	pm->gpe_status |= gpe & GPE_ALL;
	update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
}

static void pm_reset(void *dev)
{
	struct gw_pm *pm = dev;

	pthread_mutex_lock(&pm->lock);
	pm->status = 0;
	pm->enable = 0;
	pm->gpe_status = 0;
	pm->gpe_enable = 0;
	pm->control = CNT_SCI_EN;
	pm->timer_base = 0 - host_ticks();
	update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
}

static int pm_save(void *dev, struct gw_state_writer *w, struct gw_error *err)
{
	struct gw_pm *pm = dev;
	int r;

	pthread_mutex_lock(&pm->lock);
	pm->timer = (uint32_t)(host_ticks() + pm->timer_base);
	r = gw_state_put(w, &desc, "0", pm);
	pthread_mutex_unlock(&pm->lock);
	return r < 0 ? gw_error_errno(err, r, "cannot save the power management registers") : 0;
}

static int pm_load(void *dev, struct gw_state_reader *r, struct gw_error *err)
{
	struct gw_pm *pm = dev;
	int ret;

	pthread_mutex_lock(&pm->lock);
	ret = gw_state_get(r, &desc, "0", pm, err);
	/* The line's level is part of the IOAPIC's state, but setting it anew does no harm. */
	pm->status &= STS_ALL;
	pm->enable &= EN_ALL;
	pm->gpe_status &= GPE_ALL;
	pm->gpe_enable &= GPE_ALL;
	pm->control = (pm->control & CNT_KEPT) | CNT_SCI_EN;
	pm->timer_base = pm->timer - host_ticks();
	pthread_mutex_unlock(&pm->lock);
	return ret;
}

static void pm_resume(void *dev)
{
	struct gw_pm *pm = dev;

	pthread_mutex_lock(&pm->lock);
	update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
}

static void pm_free(void *dev)
{
	struct gw_pm *pm = dev;

	pthread_mutex_destroy(&pm->lock);
	free(pm);
}

static const struct gw_device_ops pm_ops = {
	.reset = pm_reset,
	.resume = pm_resume,
	.save = pm_save,
	.load = pm_load,
	.free = pm_free,
};

int gw_pm_new(struct gw_vm *vm, struct gw_pm **ret, struct gw_error *err)
{
	struct gw_pm *pm = calloc(1, sizeof(*pm));
	struct gw_device device = { "pm", "0", &pm_ops, pm };
	int r;

	if (!pm)
		return gw_error_set(err, ENOMEM, "out of memory");
	pm->vm = vm;
	pthread_mutex_init(&pm->lock, NULL);
	pm_reset(pm);
	r = gw_vm_add_device(vm, &device, err);
	if (r < 0) {
		pm_free(pm);
		return r;
	}
	r = gw_bus_add(gw_vm_pio(vm), GW_PM1_EVENT, PM_SIZE, &pm_bus, pm);
	if (r == 0)
		r = gw_bus_add(gw_vm_pio(vm), 0x60, 5, &kbd_bus, pm);
	if (r < 0)
		return gw_error_errno(err, r, "cannot register the power management ports");
	*ret = pm;
	return 0;
}
