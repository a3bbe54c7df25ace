// SPDX-License-Identifier: Apache-2.0
/*
 * The real-time clock; see rtc.h. Registers: Motorola's MC146818 data sheet. It shows the host's time plus what the guest set it off by;
 * its alarm and periodic interrupts (line 8) do not exist: no kernel of today needs them.
 */
#include "vmm/rtc.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/vm.h"

enum {
	REG_SECONDS = 0,
	REG_MINUTES = 2,
	REG_HOURS = 4,
	REG_WEEKDAY = 6,
	REG_DAY = 7,
	REG_MONTH = 8,
	REG_YEAR = 9,
	REG_A = 10,
	REG_B = 11,
	REG_C = 12,
	REG_D = 13,
	REG_CENTURY = 0x32,
};
#define CMOS_SIZE 128
#define A_DEFAULT 0x26 /* 32 kHz, the usual rate; no update is ever in progress */
#define B_SET 0x80
#define B_BINARY 0x04
#define B_24H 0x02
#define B_KEPT 0x87    /* no interrupts */
#define D_VALID 0x80
#define PM_BIT 0x80

struct gw_rtc {
	pthread_mutex_t lock;
	uint8_t index;
	uint8_t cmos[CMOS_SIZE]; /* time registers are only valid while B_SET */
	int64_t offset;          /* seconds that the guest's clock is ahead of ours */
};

static const struct gw_state_field fields[] = {
	GW_STATE_UINT(struct gw_rtc, index, 1),
	GW_STATE_BYTES(struct gw_rtc, cmos, 1),
	GW_STATE_UINT(struct gw_rtc, offset, 1),
	{ }
};
static const struct gw_state_desc desc = { "rtc", 1, 1, fields };

static uint8_t encode(const struct gw_rtc *rtc, int value)
{
	return (uint8_t)(rtc->cmos[REG_B] & B_BINARY ? value : value / 10 * 16 + value % 10);
}

static int decode(const struct gw_rtc *rtc, uint8_t value)
{
	return rtc->cmos[REG_B] & B_BINARY ? value : (value >> 4) * 10 + (value & 15);
}

static uint8_t encode_hours(const struct gw_rtc *rtc, int hours)
{
	if (rtc->cmos[REG_B] & B_24H)
		return encode(rtc, hours);
	return encode(rtc, (hours + 11) % 12 + 1) | (hours >= 12 ? PM_BIT : 0);
}

static int decode_hours(const struct gw_rtc *rtc, uint8_t value)
{
	if (rtc->cmos[REG_B] & B_24H)
		return decode(rtc, value);
	return decode(rtc, value & (uint8_t)~PM_BIT) % 12 + (value & PM_BIT ? 12 : 0);
}

/* Brings the time registers up to date. */
static void show_time(struct gw_rtc *rtc)
{
	time_t now = (time_t)(gw_realtime_ns() / GW_NS_PER_SEC) + rtc->offset;
	struct tm tm;

	if ((rtc->cmos[REG_B] & B_SET) || !gmtime_r(&now, &tm))
		return;
	rtc->cmos[REG_SECONDS] = encode(rtc, tm.tm_sec);
	rtc->cmos[REG_MINUTES] = encode(rtc, tm.tm_min);
	rtc->cmos[REG_HOURS] = encode_hours(rtc, tm.tm_hour);
	rtc->cmos[REG_WEEKDAY] = encode(rtc, tm.tm_wday + 1);
	rtc->cmos[REG_DAY] = encode(rtc, tm.tm_mday);
	rtc->cmos[REG_MONTH] = encode(rtc, tm.tm_mon + 1);
	rtc->cmos[REG_YEAR] = encode(rtc, tm.tm_year % 100);
	rtc->cmos[REG_CENTURY] = encode(rtc, (tm.tm_year + 1900) / 100);
}

/* Takes the time registers as the time that it is now. */
static void take_time(struct gw_rtc *rtc)
{
	struct tm tm = {
		.tm_sec = decode(rtc, rtc->cmos[REG_SECONDS]),
		.tm_min = decode(rtc, rtc->cmos[REG_MINUTES]),
		.tm_hour = decode_hours(rtc, rtc->cmos[REG_HOURS]),
		.tm_mday = decode(rtc, rtc->cmos[REG_DAY]),
		.tm_mon = decode(rtc, rtc->cmos[REG_MONTH]) - 1,
		.tm_year = decode(rtc, rtc->cmos[REG_CENTURY]) * 100 + decode(rtc, rtc->cmos[REG_YEAR]) - 1900,
	};

	rtc->offset = (int64_t)timegm(&tm) - (int64_t)(gw_realtime_ns() / GW_NS_PER_SEC);
}

static bool is_time(uint8_t reg)
{
	return reg == REG_CENTURY || (reg <= REG_YEAR && reg != 1 && reg != 3 && reg != 5);
}

static uint8_t read_data(struct gw_rtc *rtc)
{
	switch (rtc->index) {
	case REG_A:
		return rtc->cmos[REG_A] & 0x7f;
	case REG_C:
		return 0;
	case REG_D:
		return D_VALID;
	default:
		if (is_time(rtc->index))
			show_time(rtc);
		return rtc->cmos[rtc->index];
	}
}

static void write_data(struct gw_rtc *rtc, uint8_t value)
{
	uint8_t before = rtc->cmos[REG_B];

	switch (rtc->index) {
	case REG_B:
		/* The registers keep what they showed when updates are halted; a change of format alone changes no time. */
		show_time(rtc);
		rtc->cmos[REG_B] = value & B_KEPT;
		if ((before & B_SET) && !(value & B_SET))
			take_time(rtc);
		break;
	case REG_C:
	case REG_D:
		break;
	default:
		if (is_time(rtc->index))
			show_time(rtc);
		rtc->cmos[rtc->index] = value;
		if (is_time(rtc->index) && !(before & B_SET))
			take_time(rtc);
	}
}

static void rtc_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct gw_rtc *rtc = dev;

	/* The index register is write-only. */
	memset(data, 0xff, len);
	if (offset + len < 2)
		return;
	pthread_mutex_lock(&rtc->lock);
	((uint8_t *)data)[1 - offset] = read_data(rtc);
	pthread_mutex_unlock(&rtc->lock);
}

static void rtc_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct gw_rtc *rtc = dev;
	const uint8_t *bytes = data;

	pthread_mutex_lock(&rtc->lock);
	if (offset == 0)
		rtc->index = bytes[0] & (CMOS_SIZE - 1); /* bit 7 masks NMIs */
	if (offset + len == 2)
		write_data(rtc, bytes[1 - offset]);
	pthread_mutex_unlock(&rtc->lock);
}

static const struct gw_bus_ops bus_ops = { .read = rtc_read, .write = rtc_write };

/* The clock has a battery: a reset only switches interrupts off. */
static void rtc_reset(void *dev)
{
	struct gw_rtc *rtc = dev;

	pthread_mutex_lock(&rtc->lock);
	rtc->index = 0;
	rtc->cmos[REG_B] &= (uint8_t)~B_SET;
	pthread_mutex_unlock(&rtc->lock);
}

static int rtc_save(void *dev, struct gw_state_writer *w, struct gw_error *err)
{
	struct gw_rtc *rtc = dev;
	int r;

	pthread_mutex_lock(&rtc->lock);
	r = gw_state_put(w, &desc, "0", rtc);
	pthread_mutex_unlock(&rtc->lock);
	return r < 0 ? gw_error_errno(err, r, "cannot save the real-time clock") : 0;
}

static int rtc_load(void *dev, struct gw_state_reader *r, struct gw_error *err)
{
	struct gw_rtc *rtc = dev;
	const int64_t bound = (int64_t)400 * 366 * 86400;
	int ret;

	pthread_mutex_lock(&rtc->lock);
	ret = gw_state_get(r, &desc, "0", rtc, err);
	rtc->index &= CMOS_SIZE - 1;
	rtc->cmos[REG_B] &= B_KEPT;
	if (ret == 0 && (rtc->offset > bound || rtc->offset < -bound))
		ret = gw_error_set(err, EPROTO, "state of the real-time clock: set off by %lld seconds", (long long)rtc->offset);
	if (ret < 0)
		rtc->offset = 0;
	pthread_mutex_unlock(&rtc->lock);
	return ret;
}

static void rtc_free(void *dev)
{
	struct gw_rtc *rtc = dev;

	pthread_mutex_destroy(&rtc->lock);
	free(rtc);
}

static const struct gw_device_ops device_ops = {
	.reset = rtc_reset,
	.save = rtc_save,
	.load = rtc_load,
	.free = rtc_free,
};

int gw_rtc_new(struct gw_vm *vm, struct gw_error *err)
{
	struct gw_rtc *rtc = calloc(1, sizeof(*rtc));
	struct gw_device device = { "rtc", "0", &device_ops, rtc };
	int r;

	if (!rtc)
		return gw_error_set(err, ENOMEM, "out of memory");
	pthread_mutex_init(&rtc->lock, NULL);
	rtc->cmos[REG_A] = A_DEFAULT;
	rtc->cmos[REG_B] = B_24H;
	r = gw_vm_add_device(vm, &device, err);
	if (r < 0) {
		rtc_free(rtc);
		return r;
	}
	r = gw_bus_add(gw_vm_pio(vm), 0x70, 2, &bus_ops, rtc);
	return r < 0 ? gw_error_errno(err, r, "cannot register the real-time clock") : 0;
}
