// SPDX-License-Identifier: Apache-2.0
/* PCI bus, MSI-X and the virtio transport, driven as a guest does, with the entropy device behind. */
#include "tests/unit/cmocka-all.h"

#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <string.h>

#include "lib/buf.h"
#include "lib/util.h"
#include "tests/unit/virtio-guest.h"
#include "vmm/bus.h"
#include "vmm/rng.h"
#include "vmm/virtio-pci.h"
#include "vmm/vm.h"

#define SLOT 5
#define ALL UINT64_MAX
#define DATA 0x200000

struct fixture {
	struct fake_host *fake;
	struct gw_device dev;
	struct gw_virtio *vd;
	struct guest guest;
};

static struct gw_virtio *add_rng(struct fake_host *fake, struct gw_device *dev)
{
	struct gw_virtio *vd = NULL;

	assert_int_equal(gw_rng_new(&fake->host, &vd, NULL), 0);
	assert_int_equal(gw_virtio_pci_attach(vd, fake->pci, SLOT, NULL), 0);
	*dev = gw_virtio_device(vd);
	return vd;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->fake = fake_host_new();
	f->vd = add_rng(f->fake, &f->dev);
	f->dev.ops->resume(f->dev.self);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	f->dev.ops->free(f->dev.self);
	fake_host_free(f->fake);
	free(f);
	return 0;
}

static void config_space_answers_both_ways(void **state)
{
	struct fixture *f = *state;
	uint32_t v = 0x80000000u | SLOT << 11;

	assert_int_equal(fake_config_read(f->fake, 0, PCI_CLASS_REVISION + 2, 2), 0x0600);
	assert_int_equal(fake_config_read(f->fake, SLOT, PCI_VENDOR_ID, 4), 0x10441af4);
	assert_int_equal(fake_config_read(f->fake, SLOT + 1, PCI_VENDOR_ID, 4), 0xffffffff);
	assert_int_equal(fake_read(f->fake, GW_GPA_ECAM + (SLOT << 15) + 0x100, 4), 0);
	assert_int_equal(fake_read(f->fake, GW_GPA_ECAM + (SLOT << 15 | 1 << 12), 4), 0xffffffff);
	assert_int_equal(fake_read(f->fake, GW_GPA_ECAM + (1 << 20), 4), 0xffffffff);
	gw_bus_write(f->fake->host.pio, 0xcf8, &v, 4);
	gw_bus_read(f->fake->host.pio, 0xcfc, &v, 4);
	assert_int_equal(v, 0x10441af4);
	v = 0;
	gw_bus_read(f->fake->host.pio, 0xcfe, &v, 2);
	assert_int_equal(v, 0x1044);
	v = 0x7fffffff;
	gw_bus_write(f->fake->host.pio, 0xcf8, &v, 4);
	gw_bus_read(f->fake->host.pio, 0xcfc, &v, 4);
	assert_int_equal(v, 0xffffffff);
	/* Identity cannot be written. */
	fake_config_write(f->fake, SLOT, PCI_VENDOR_ID, 0, 4);
	assert_int_equal(fake_config_read(f->fake, SLOT, PCI_VENDOR_ID, 4), 0x10441af4);
}

static void bars_are_sized_moved_and_switched_off(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	uint64_t old;

	guest_probe(g, f->fake, SLOT);
	old = g->bar;
	assert_int_equal(old % 0x4000, 0);
	assert_in_range(old, GW_GPA_PCI32, GW_GPA_PCI32 + GW_GPA_PCI32_SIZE - 1);
	assert_int_equal(guest_common_read(g, VIRTIO_PCI_COMMON_NUMQ, 2), 1);
	fake_config_write(f->fake, SLOT, PCI_COMMAND, 0, 2);
	assert_int_equal(guest_common_read(g, VIRTIO_PCI_COMMON_NUMQ, 2), 0xffff);
	fake_config_write(f->fake, SLOT, PCI_BASE_ADDRESS_0, 0xffffffff, 4);
	fake_config_write(f->fake, SLOT, PCI_BASE_ADDRESS_1, 0xffffffff, 4);
	assert_int_equal(fake_config_read(f->fake, SLOT, PCI_BASE_ADDRESS_0, 4), 0xffffc004);
	assert_int_equal(fake_config_read(f->fake, SLOT, PCI_BASE_ADDRESS_1, 4), 0xffffffff);
	/* Far above RAM. */
	fake_config_write(f->fake, SLOT, PCI_BASE_ADDRESS_0, 0x10000, 4);
	fake_config_write(f->fake, SLOT, PCI_BASE_ADDRESS_1, 0x20, 4);
	fake_config_write(f->fake, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	g->bar = 0x2000010000ull;
	assert_int_equal(guest_common_read(g, VIRTIO_PCI_COMMON_NUMQ, 2), 1);
	assert_int_equal(fake_read(f->fake, old, 4), 0xffffffff);
	/* Kicks went along, one a queue. */
	assert_int_equal(f->fake->nioeventfd, 1);
	assert_int_equal(f->fake->ioeventfd[0].addr, g->bar + 0x3000);
	/* Onto the ECAM window: refused, and the machine goes on. */
	fake_config_write(f->fake, SLOT, PCI_BASE_ADDRESS_1, 0, 4);
	fake_config_write(f->fake, SLOT, PCI_BASE_ADDRESS_0, (uint32_t)GW_GPA_ECAM, 4);
	assert_int_equal(fake_config_read(f->fake, SLOT, PCI_VENDOR_ID, 4), 0x10441af4);
	f->dev.ops->reset(f->dev.self);
	assert_int_equal(fake_config_read(f->fake, SLOT, PCI_BASE_ADDRESS_0, 4), old | 4);
}

static void negotiation_has_rules(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;

	/* A driver without virtio 1 is refused. */
	assert_false(guest_start(g, f->fake, SLOT, 1ull << VIRTIO_RING_F_EVENT_IDX));
	/* So is one that takes what was not offered. */
	guest_reset(g);
	guest_common_write(g, VIRTIO_PCI_COMMON_GFSELECT, 1, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_GF, 0xffffffff, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_STATUS, 11, 1);
	assert_false(guest_status(g) & VIRTIO_CONFIG_S_FEATURES_OK);
	assert_true(guest_start(g, f->fake, SLOT, ALL));
	assert_int_equal(guest_status(g), 15);
	/* What was agreed upon stays. */
	guest_common_write(g, VIRTIO_PCI_COMMON_GFSELECT, 0, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_GF, 0, 4);
	assert_int_equal(guest_common_read(g, VIRTIO_PCI_COMMON_GF, 4), (uint32_t)g->features);
	guest_reset(g);
	assert_int_equal(guest_status(g), 0);
	assert_int_equal(guest_common_read(g, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
	assert_int_equal(guest_common_read(g, VIRTIO_PCI_COMMON_Q_SIZE, 2), 16);
	/* A queue that does not exist. */
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_SELECT, 7, 2);
	assert_int_equal(guest_common_read(g, VIRTIO_PCI_COMMON_Q_SIZE, 2), 0);
	guest_common_write(g, VIRTIO_PCI_COMMON_MSIX, 9, 2);
	assert_int_equal(guest_common_read(g, VIRTIO_PCI_COMMON_MSIX, 2), GW_VIRTIO_NO_VECTOR);
}

static void get_random(struct guest *g)
{
	const struct guest_buf buf = { DATA, 64, true };
	static const uint8_t zero[64];
	uint32_t len = 0;

	memset(guest_ptr(g, DATA, 64), 0, 64);
	guest_add(g, 0, &buf, 1);
	guest_kick(g, 0);
	assert_true(guest_used(g, 0, NULL, &len));
	assert_int_equal(len, 64);
	assert_memory_not_equal(guest_ptr(g, DATA, 64), zero, 64);
}

static bool raised(void *arg)
{
	struct fixture *f = arg;

	return fake_raised(f->fake, GUEST_MESSAGE(SLOT, 1)) > 0;
}

static bool told(void *arg)
{
	struct fixture *f = arg;

	return fake_raised(f->fake, GUEST_MESSAGE(SLOT, 0)) == 1;
}

static void requests_are_served_and_interrupt(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;

	assert_true(guest_start(g, f->fake, SLOT, ALL));
	for (int i = 0; i < 40; i++)
		get_random(g);
	assert_true(fake_wait(raised, f));
	/* The same by the BAR's own handler, where there are no ioeventfds. */
	f->fake->nioeventfd = 0;
	get_random(g);
	fake_read(f->fake, g->bar + 0x1000, 1);
	assert_int_equal(fake_read(f->fake, g->bar + 0x1000, 1), 0);
}

static void masked_vectors_stay_pending(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	unsigned before;

	assert_true(guest_start(g, f->fake, SLOT, 1ull << VIRTIO_F_VERSION_1));
	fake_write(f->fake, g->msix + 16 + 12, 1, 4);
	before = fake_raised(f->fake, GUEST_MESSAGE(SLOT, 1));
	get_random(g);
	f->dev.ops->quiesce(f->dev.self); /* its interrupt is decided upon */
	f->dev.ops->resume(f->dev.self);
	assert_int_equal(fake_raised(f->fake, GUEST_MESSAGE(SLOT, 1)), before);
	assert_int_equal(fake_read(f->fake, g->msix + 0x1000, 8), 2);
	fake_write(f->fake, g->msix + 16 + 12, 0, 4);
	assert_int_equal(fake_raised(f->fake, GUEST_MESSAGE(SLOT, 1)), before + 1);
	assert_int_equal(fake_read(f->fake, g->msix + 0x1000, 8), 0);
}

/* virtio 1.2 §4.1.4.9 */
static void the_config_window_reaches_the_bar(void **state)
{
	struct fixture *f = *state;
	unsigned at = fake_config_read(f->fake, SLOT, PCI_CAPABILITY_LIST, 1);

	while (fake_config_read(f->fake, SLOT, at + 3, 1) != VIRTIO_PCI_CAP_PCI_CFG ||
	       fake_config_read(f->fake, SLOT, at, 1) != PCI_CAP_ID_VNDR)
		at = fake_config_read(f->fake, SLOT, at + 1, 1);
	fake_config_write(f->fake, SLOT, at + 4, 0, 1);
	fake_config_write(f->fake, SLOT, at + 8, VIRTIO_PCI_COMMON_NUMQ, 4);
	fake_config_write(f->fake, SLOT, at + 12, 2, 4);
	assert_int_equal(fake_config_read(f->fake, SLOT, at + 16, 2), 1);
	fake_config_write(f->fake, SLOT, at + 8, VIRTIO_PCI_COMMON_STATUS, 4);
	fake_config_write(f->fake, SLOT, at + 12, 1, 4);
	fake_config_write(f->fake, SLOT, at + 16, 1, 4);
	assert_int_equal(fake_config_read(f->fake, SLOT, at + 16, 1), 1);
	/* Outside of the BAR, and of a length that there is not. */
	fake_config_write(f->fake, SLOT, at + 8, 0x4000, 4);
	fake_config_read(f->fake, SLOT, at + 16, 1);
	fake_config_write(f->fake, SLOT, at + 12, 0, 4);
	fake_config_read(f->fake, SLOT, at + 16, 1);
}

static void a_broken_queue_stops_its_device_alone(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;

	assert_true(guest_start(g, f->fake, SLOT, ALL));
	get_random(g);
	guest_desc(g, 0, 4, 1ull << 40, 64, VRING_DESC_F_WRITE, 0);
	guest_avail(g, 0, 4);
	guest_kick(g, 0);
	assert_true(guest_broken(g));
	/* The driver is told by the configuration's vector, and a reset heals. */
	assert_true(fake_wait(told, f));
	f->dev.ops->quiesce(f->dev.self);
	assert_int_equal(f->vd->violations, 1);
	f->dev.ops->resume(f->dev.self);
	assert_true(guest_start(g, f->fake, SLOT, ALL));
	get_random(g);
	/* Rings outside of RAM break it as well. */
	guest_reset(g);
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_SELECT, 0, 2);
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_DESCLO, 0xfffff000, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
	assert_true(guest_broken(g));
}

static void save(struct fixture *f, struct gw_buf *out)
{
	struct gw_state_writer *w = NULL;

	f->dev.ops->quiesce(f->dev.self);
	assert_int_equal(gw_state_writer_new(&w), 0);
	assert_int_equal(f->dev.ops->save(f->dev.self, w, NULL), 0);
	assert_int_equal(gw_state_finish(w, out), 0);
	gw_state_writer_free(w);
}

static int load(struct gw_device *dev, const struct gw_buf *in)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_state_reader *r = NULL;
	int ret;

	assert_int_equal(gw_state_reader_new(in->data, in->len, &r, NULL), 0);
	ret = dev->ops->load(dev->self, r, &err);
	if (ret == 0)
		assert_true(gw_state_reader_done(r, NULL) == 0);
	else
		assert_true(err.msg[0]);
	gw_state_reader_free(r);
	return ret;
}

/* The device is freed and made anew between save and load; RAM stays, as a move's does. */
static void state_goes_over(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	struct gw_buf buf = GW_BUF_INIT;
	const struct guest_buf waiting = { DATA + 4096, 32, true };
	unsigned before;

	assert_true(guest_start(g, f->fake, SLOT, ALL));
	get_random(g);
	/* One more is available whose kick is lost on the way. */
	guest_add(g, 0, &waiting, 1);
	f->fake->nioeventfd = 0;
	save(f, &buf);
	f->dev.ops->free(f->dev.self);
	f->vd = add_rng(f->fake, &f->dev);
	assert_int_equal(load(&f->dev, &buf), 0);
	before = fake_raised(f->fake, GUEST_MESSAGE(SLOT, 1));
	f->dev.ops->resume(f->dev.self);
	assert_true(guest_used(g, 0, NULL, NULL));
	assert_true(fake_raised(f->fake, GUEST_MESSAGE(SLOT, 1)) > before);
	get_random(g);
	assert_int_equal(guest_status(g), 15);
	gw_buf_release(&buf);
}

/* How many interrupts a device raises that arrives with nothing to do; its driver has asked to be told of that index. */
static unsigned raised_on_arrival(struct fixture *f, uint16_t used_event)
{
	struct gw_buf buf = GW_BUF_INIT;
	unsigned before;
	struct guest_queue *q = &f->guest.q[0];

	((uint16_t *)guest_ptr(&f->guest, q->avail, 6 + 2ull * q->size))[2 + q->size] = used_event;
	save(f, &buf);
	f->dev.ops->free(f->dev.self);
	f->vd = add_rng(f->fake, &f->dev);
	assert_int_equal(load(&f->dev, &buf), 0);
	before = fake_raised(f->fake, GUEST_MESSAGE(SLOT, 1));
	f->dev.ops->resume(f->dev.self);
	gw_buf_release(&buf);
	return fake_raised(f->fake, GUEST_MESSAGE(SLOT, 1)) - before;
}

/* An interrupt that was on its way at the source may be lost: an arrived device raises one, unless its driver has seen all there is. */
static void arrival_raises_a_spare_interrupt(void **state)
{
	struct fixture *f = *state;

	assert_true(guest_start(&f->guest, f->fake, SLOT, UINT64_MAX));
	get_random(&f->guest);
	assert_int_equal(raised_on_arrival(f, 0), 1);
	assert_int_equal(raised_on_arrival(f, 1), 0);
	assert_int_equal(raised_on_arrival(f, 2), 1);
}

/* Each bit of a state turned over: either refused or harmless, never a crash. */
static void hostile_state_is_refused_or_harmless(void **state)
{
	struct fixture *f = *state;
	struct gw_buf buf = GW_BUF_INIT;
	unsigned refused = 0;

	assert_true(guest_start(&f->guest, f->fake, SLOT, ALL));
	get_random(&f->guest);
	save(f, &buf);
	for (size_t i = 0; i < buf.len * 8; i += 3) {
		struct gw_error err = GW_ERROR_INIT;
		struct gw_state_reader *r = NULL;

		buf.data[i / 8] ^= (uint8_t)(1 << i % 8);
		if (gw_state_reader_new(buf.data, buf.len, &r, &err) == 0) {
			if (f->dev.ops->load(f->dev.self, r, &err) < 0) {
				refused++;
			} else {
				f->dev.ops->resume(f->dev.self);
				guest_kick(&f->guest, 0);
				f->dev.ops->quiesce(f->dev.self);
			}
			gw_state_reader_free(r);
		}
		buf.data[i / 8] ^= (uint8_t)(1 << i % 8);
	}
	assert_true(refused > 10);
	assert_int_equal(load(&f->dev, &buf), 0);
	f->dev.ops->resume(f->dev.self);
	get_random(&f->guest);
	gw_buf_release(&buf);
}

static void a_quiesced_device_does_nothing(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	const struct guest_buf buf = { DATA, 64, true };

	assert_true(guest_start(g, f->fake, SLOT, ALL));
	f->dev.ops->quiesce(f->dev.self);
	guest_add(g, 0, &buf, 1);
	guest_kick(g, 0);
	f->dev.ops->quiesce(f->dev.self); /* goes through the device thread, behind the kick */
	assert_false(guest_used_now(g, 0, NULL, NULL));
	f->dev.ops->resume(f->dev.self);
	assert_true(guest_used(g, 0, NULL, NULL));
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(config_space_answers_both_ways),
		T(bars_are_sized_moved_and_switched_off),
		T(negotiation_has_rules),
		T(requests_are_served_and_interrupt),
		T(masked_vectors_stay_pending),
		T(the_config_window_reaches_the_bar),
		T(a_broken_queue_stops_its_device_alone),
		T(state_goes_over),
		T(arrival_raises_a_spare_interrupt),
		T(hostile_state_is_refused_or_harmless),
		T(a_quiesced_device_does_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
