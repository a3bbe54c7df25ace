// SPDX-License-Identifier: Apache-2.0
/* The first effects of an arrived VM are told to who waits for them. */
#include "cmocka-all.h"

#include <pthread.h>
#include <unistd.h>

#include "lib/clock.h"
#include "vmm/effect.h"

static uint64_t soon(void)
{
	return gw_now_ns() + 20 * GW_NS_PER_MS;
}

static void nothing_is_noted_unless_armed(void **state)
{
	gw_effect_note(GW_EFFECT_PACKET);
	gw_effect_arm();
	assert_int_equal(gw_effect_wait(soon()), 0);
}

static void a_disk_write_counts_when_no_packet_comes(void **state)
{
	uint64_t before = gw_now_ns();

	gw_effect_arm();
	assert_int_equal(gw_effect_wait(soon()), 0);
	assert_true(gw_effect_armed);
	gw_effect_note(GW_EFFECT_DISK);
	/* Nobody waits for a packet any more. */
	assert_false(gw_effect_armed);
	assert_in_range(gw_effect_wait(soon()), before, gw_now_ns());
}

static void *disk_then_packet(void *arg)
{
	uint64_t *packet_ns = arg;

	gw_effect_note(GW_EFFECT_DISK);
	usleep(20000);
	*packet_ns = gw_now_ns();
	gw_effect_note(GW_EFFECT_PACKET);
	return NULL;
}

static void a_packet_is_waited_for(void **state)
{
	uint64_t packet_ns = 0, told;
	pthread_t t;

	gw_effect_arm();
	assert_int_equal(pthread_create(&t, NULL, disk_then_packet, &packet_ns), 0);
	told = gw_effect_wait(gw_now_ns() + 20 * GW_NS_PER_SEC);
	pthread_join(t, NULL);
	assert_true(told >= packet_ns);
	assert_false(gw_effect_armed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_is_noted_unless_armed),
		cmocka_unit_test(a_disk_write_counts_when_no_packet_comes),
		cmocka_unit_test(a_packet_is_waited_for),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
