// SPDX-License-Identifier: Apache-2.0
/*
 * Address buses; see bus.h. A sorted array of ranges under a read-write lock that is held for the look-up only. While a handler runs
 * it holds a reference to its range, so that a range can be taken away (the guest moves a BAR) with its handlers still at work.
 */
#include "vmm/bus.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "lib/util.h"

struct range {
	uint64_t base;
	uint64_t size;
	const struct gw_bus_ops *ops;
	void *dev;
	unsigned refs; /* atomic: the bus's own and one for each running handler */
};

struct gw_bus {
	pthread_rwlock_t lock;
	struct range **ranges; /* by base */
	size_t count;
};

/* How deep this thread is within handlers of any bus: a handler that removes a range must not wait for itself. */
static __thread unsigned inside;

struct gw_bus *gw_bus_new(void)
{
	struct gw_bus *bus = calloc(1, sizeof(*bus));

	if (bus)
		pthread_rwlock_init(&bus->lock, NULL);
	return bus;
}

void gw_bus_free(struct gw_bus *bus)
{
	if (!bus)
		return;
	for (size_t i = 0; i < bus->count; i++)
		free(bus->ranges[i]);
	free(bus->ranges);
	pthread_rwlock_destroy(&bus->lock);
	free(bus);
}

static void put_range(struct range *range)
{
	if (__atomic_sub_fetch(&range->refs, 1, __ATOMIC_ACQ_REL) == 0)
		free(range);
}

/* Index of the first range that begins above `addr`; under the lock. */
static size_t upper_bound(const struct gw_bus *bus, uint64_t addr)
{
	size_t low = 0, high = bus->count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (bus->ranges[mid]->base <= addr)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static int insert(struct gw_bus *bus, struct range *range)
{
	size_t i = upper_bound(bus, range->base);
	struct range **ranges;

	if (i > 0 && range->base - bus->ranges[i - 1]->base < bus->ranges[i - 1]->size)
		return -EEXIST;
	if (i < bus->count && bus->ranges[i]->base - range->base < range->size)
		return -EEXIST;
	ranges = reallocarray(bus->ranges, bus->count + 1, sizeof(struct range *));
	if (!ranges)
		return -ENOMEM;
	memmove(&ranges[i + 1], &ranges[i], (bus->count - i) * sizeof(struct range *));
	ranges[i] = range;
	bus->ranges = ranges;
	bus->count++;
	return 0;
}

int gw_bus_add(struct gw_bus *bus, uint64_t base, uint64_t size, const struct gw_bus_ops *ops, void *dev)
{
	struct range *range;
	int r;

	if (size == 0 || base + (size - 1) < base)
		return -EINVAL;
	range = malloc(sizeof(*range));
	if (!range)
		return -ENOMEM;
	*range = (struct range){ base, size, ops, dev, 1 };
	pthread_rwlock_wrlock(&bus->lock);
	r = insert(bus, range);
	pthread_rwlock_unlock(&bus->lock);
	if (r < 0)
		free(range);
	return r;
}

void gw_bus_remove(struct gw_bus *bus, uint64_t base)
{
	struct range *range = NULL;
	size_t i;

	pthread_rwlock_wrlock(&bus->lock);
	i = upper_bound(bus, base);
	if (i > 0 && bus->ranges[i - 1]->base == base) {
		range = bus->ranges[i - 1];
		memmove(&bus->ranges[i - 1], &bus->ranges[i], (bus->count - i) * sizeof(struct range *));
		bus->count--;
	}
	pthread_rwlock_unlock(&bus->lock);
	if (!range)
		return;
	/* From within a handler the others are not waited for: two handlers that remove each other's ranges would hang. */
	while (!inside && __atomic_load_n(&range->refs, __ATOMIC_ACQUIRE) > 1)
		sched_yield();
	put_range(range);
}

/* The range that holds all of [addr, addr + len), with a reference; or NULL. */
static struct range *get_range(struct gw_bus *bus, uint64_t addr, unsigned len)
{
	struct range *range = NULL;
	size_t i;

	pthread_rwlock_rdlock(&bus->lock);
	i = upper_bound(bus, addr);
	if (i > 0) {
		uint64_t offset = addr - bus->ranges[i - 1]->base;

		if (offset < bus->ranges[i - 1]->size && len <= bus->ranges[i - 1]->size - offset) {
			range = bus->ranges[i - 1];
			__atomic_fetch_add(&range->refs, 1, __ATOMIC_RELAXED);
		}
	}
	pthread_rwlock_unlock(&bus->lock);
	return range;
}

int gw_bus_read(struct gw_bus *bus, uint64_t addr, void *data, unsigned len)
{
	struct range *range = get_range(bus, addr, len);

	memset(data, 0xff, len);
	if (!range)
		return 0;
	inside++;
	range->ops->read(range->dev, addr - range->base, data, len);
	inside--;
	put_range(range);
	return 1;
}

int gw_bus_write(struct gw_bus *bus, uint64_t addr, const void *data, unsigned len)
{
	struct range *range = get_range(bus, addr, len);

	if (!range)
		return 0;
	inside++;
	range->ops->write(range->dev, addr - range->base, data, len);
	inside--;
	put_range(range);
	return 1;
}
