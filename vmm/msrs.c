// SPDX-License-Identifier: Apache-2.0
/* Model-specific registers; see msrs.h. Numbers: Intel SDM volume 4, the kernel's Documentation/virt/kvm/x86/msr.rst. */
#include "vmm/msrs.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <string.h>

#include "lib/ram/ram.h"
#include "lib/util.h"
#include "vmm/kvm.h"

#define MSR_MCG_CAP 0x179u
#define MSR_MC0_CTL 0x400u
#define MSR_KVM_WALL_CLOCK 0x4b564d00u
/* struct pvclock_wall_clock */
#define WALL_CLOCK_BYTES 12

/* Registers that KVM keeps but does not list: memory types, debug control. */
static const uint32_t unlisted[] = {
	0x1d9, 0x277, 0x2ff, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
	0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f,
};

struct batch {
	struct kvm_msrs head;
	struct kvm_msr_entry entries[GW_MAX_MSRS];
};

int gw_msr_read(int vcpu_fd, uint32_t index, uint64_t *value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one = { .head.nmsrs = 1, .entry.index = index };

	if (gw_kvm_ioctl(vcpu_fd, KVM_GET_MSRS, &one) != 1)
		return -EIO;
	*value = one.entry.data;
	return 0;
}

int gw_msr_write(int vcpu_fd, uint32_t index, uint64_t value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one = { .head.nmsrs = 1, .entry = { .index = index, .data = value } };

	return gw_kvm_ioctl(vcpu_fd, KVM_SET_MSRS, &one) == 1 ? 0 : -EIO;
}

/* Registers that are saved by other means, or that our guests cannot have. */
static bool excluded(uint32_t index)
{
	switch (index) {
	case GW_MSR_TSC: /* with the clocks */
	case 0x11:       /* older aliases of the KVM clock's two */
	case 0x12:
		return true;
	default:
		/* VMX capabilities; the range of other hypervisors' interfaces. */
		return (index >= 0x480 && index <= 0x493) || (index >= 0x40000000 && index <= 0x400003ff);
	}
}

static void add_candidate(struct batch *b, uint32_t index)
{
	if (excluded(index) || b->head.nmsrs == GW_MAX_MSRS)
		return;
	for (unsigned i = 0; i < b->head.nmsrs; i++) {
		if (b->entries[i].index == index)
			return;
	}
	b->entries[b->head.nmsrs++].index = index;
}

static int gather(int kvm_fd, int vcpu_fd, struct batch *b, struct gw_error *err)
{
	gw_autofree struct kvm_msr_list *raw = calloc(1, sizeof(*raw) + GW_MAX_MSRS * sizeof(raw->indices[0]));
	uint64_t mcg_cap = 0;
	int r;

	if (!raw)
		return gw_error_set(err, ENOMEM, "out of memory");
	raw->nmsrs = GW_MAX_MSRS;
	r = gw_kvm_ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, raw);
	if (r < 0)
		return gw_error_errno(err, r, "cannot learn which model-specific registers KVM keeps");
	for (uint32_t i = 0; i < raw->nmsrs; i++)
		add_candidate(b, raw->indices[i]);
	for (size_t i = 0; i < ARRAY_SIZE(unlisted); i++)
		add_candidate(b, unlisted[i]);
	/* Four registers for each bank of machine checks; the number of banks is in the low byte. */
	if (gw_msr_read(vcpu_fd, MSR_MCG_CAP, &mcg_cap) == 0) {
		for (uint32_t i = 0; i < 4 * GW_MIN((uint32_t)(mcg_cap & 0xff), 32u); i++)
			add_candidate(b, MSR_MC0_CTL + i);
	}
	return 0;
}

/* Leaves in the batch what KVM takes by `request`. It stops at the first that it refuses: the rest is asked for anew. */
static int keep_taken(int vcpu_fd, unsigned long request, struct batch *b, struct gw_error *err)
{
	gw_autofree struct batch *rest = calloc(1, sizeof(*rest));
	unsigned total = b->head.nmsrs, taken = 0;

	if (!rest)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (unsigned first = 0; first < total;) {
		int r;

		rest->head.nmsrs = total - first;
		memcpy(rest->entries, b->entries + first, (total - first) * sizeof(rest->entries[0]));
		r = gw_kvm_ioctl(vcpu_fd, request, rest);
		r = GW_MAX(r, 0);
		memcpy(b->entries + taken, rest->entries, (unsigned)r * sizeof(rest->entries[0]));
		taken += (unsigned)r;
		first += (unsigned)r + 1;
	}
	b->head.nmsrs = taken;
	return 0;
}

int gw_msr_list_init(int kvm_fd, int vcpu_fd, struct gw_msr_list *list, struct gw_error *err)
{
	gw_autofree struct batch *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gather(kvm_fd, vcpu_fd, b, err);
	r = r ?: keep_taken(vcpu_fd, KVM_GET_MSRS, b, err);
	r = r ?: keep_taken(vcpu_fd, KVM_SET_MSRS, b, err);
	if (r < 0)
		return r;
	list->count = b->head.nmsrs;
	for (unsigned i = 0; i < list->count; i++)
		list->index[i] = b->entries[i].index;
	return 0;
}

int gw_msrs_get(int vcpu_fd, const struct gw_msr_list *list, struct gw_buf *out, struct gw_error *err)
{
	gw_autofree struct batch *batch = calloc(1, sizeof(*batch));
	int r;

	if (!batch)
		return gw_error_set(err, ENOMEM, "out of memory");
	batch->head.nmsrs = list->count;
	for (unsigned i = 0; i < list->count; i++)
		batch->entries[i].index = list->index[i];
	r = gw_kvm_ioctl(vcpu_fd, KVM_GET_MSRS, batch);
	if (r < 0)
		return gw_error_errno(err, r, "cannot read model-specific registers");
	if ((unsigned)r != list->count)
		return gw_error_set(err, EIO, "cannot read model-specific register 0x%x", list->index[r]);
	out->len = 0;
	r = gw_buf_append(out, batch->entries, list->count * sizeof(batch->entries[0]));
	return r < 0 ? gw_error_set(err, ENOMEM, "out of memory") : 0;
}

/* Writes all entries of the batch; KVM stops at the first it refuses. */
static int set_batch(int vcpu_fd, struct batch *batch, unsigned count, struct gw_error *err)
{
	struct kvm_msr_entry *first = batch->entries;

	while (count) {
		int r;

		batch->head.nmsrs = count;
		r = gw_kvm_ioctl(vcpu_fd, KVM_SET_MSRS, batch);
		if (r < 0)
			return gw_error_errno(err, r, "cannot set model-specific registers");
		if ((unsigned)r >= count)
			return 0;
		/* A register that is not known here and holds nothing is no loss. */
		if (first[r].data)
			return gw_error_set(err, ENOTSUP, "this host's KVM does not take model-specific register 0x%x = 0x%llx",
					    first[r].index, (unsigned long long)first[r].data);
		count -= (unsigned)r + 1;
		memmove(first, first + r + 1, count * sizeof(*first));
	}
	return 0;
}

int gw_msrs_set(int vcpu_fd, struct gw_ram *ram, const struct gw_buf *msrs, uint64_t *deadline, struct gw_error *err)
{
	gw_autofree struct batch *batch = NULL;
	unsigned total = (unsigned)(msrs->len / sizeof(struct kvm_msr_entry)), count = 0;
	uint8_t saved[WALL_CLOCK_BYTES];
	uint64_t wall_clock = 0;
	int r;

	if (msrs->len % sizeof(struct kvm_msr_entry) || total > GW_MAX_MSRS)
		return gw_error_set(err, EPROTO, "the list of model-specific registers has a wrong size");
	batch = calloc(1, sizeof(*batch));
	if (!batch)
		return gw_error_set(err, ENOMEM, "out of memory");
	*deadline = 0;
	for (unsigned i = 0; i < total; i++) {
		struct kvm_msr_entry e;

		memcpy(&e, msrs->data + i * sizeof(e), sizeof(e));
		e.reserved = 0;
		if (excluded(e.index))
			return gw_error_set(err, EPROTO, "model-specific register 0x%x is not part of a state", e.index);
		if (e.index == MSR_KVM_WALL_CLOCK)
			wall_clock = e.data;
		if (e.index == GW_MSR_TSC_DEADLINE)
			*deadline = e.data;
		else
			batch->entries[count++] = e;
	}
	/*
	 * Setting the wall clock's address makes KVM write the clock into guest memory. The guest read what it asked for long ago, and
	 * its RAM shall stay as it was saved, bit for bit.
	 */
	if (wall_clock && gw_ram_read(ram, wall_clock, saved, sizeof(saved)) < 0)
		wall_clock = 0;
	r = set_batch(vcpu_fd, batch, count, err);
	if (wall_clock)
		(void)gw_ram_write(ram, wall_clock, saved, sizeof(saved));
	return r;
}
