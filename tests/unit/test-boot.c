// SPDX-License-Identifier: Apache-2.0
/* Boot files: both protocols from made-up kernels, and truncated or hostile ones, each refused with its reason. */
#include "tests/unit/cmocka-all.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/ram/ram.h"
#include "lib/util.h"
#include "vmm/boot.h"
#include "vmm/bzimage.h"
#include "vmm/memmap.h"
#include "vmm/pvh.h"
#include "vmm/vm.h"

#define MIB (1ull << 20)
#define SETUP_BYTES (5 * 512u)
#define PAYLOAD 4096u

struct bz {
	uint8_t bytes[SETUP_BYTES + PAYLOAD];
	size_t len;
};

static struct setup_header *header(struct bz *bz)
{
	return (struct setup_header *)(bz->bytes + 0x1f1);
}

/* A kernel as small as the protocol allows. */
static void make_bzimage(struct bz *bz)
{
	struct setup_header *h = header(bz);

	memset(bz, 0, sizeof(*bz));
	bz->len = sizeof(bz->bytes);
	h->setup_sects = 4;
	h->boot_flag = 0xaa55;
	h->jump = 0x66eb; /* to 0x268 */
	h->header = 0x53726448;
	h->version = 0x020f;
	h->loadflags = LOADED_HIGH;
	h->xloadflags = XLF_KERNEL_64;
	h->syssize = PAYLOAD / 16;
	h->kernel_alignment = 0x200000;
	h->relocatable_kernel = 1;
	h->pref_address = 16 * MIB;
	h->init_size = 2 * MIB;
	h->initrd_addr_max = 0x7fffffff;
	h->cmdline_size = 2047;
	memset(bz->bytes + SETUP_BYTES, 0x90, PAYLOAD);
}

static struct gw_image image_of(const void *data, size_t len)
{
	return (struct gw_image){ .name = "kernel", .fd = -1, .data = data, .size = len };
}

static int load(struct gw_ram *ram, const void *kernel, size_t len, const void *initrd, size_t initrd_len, const char *cmdline,
		struct gw_boot_entry *entry, struct gw_error *err)
{
	struct gw_image k = image_of(kernel, len), i = image_of(initrd, initrd_len);
	struct gw_boot_request req = { &k, initrd ? &i : NULL, cmdline, GW_GPA_ACPI };

	i.name = "initrd";
	err->code = 0;
	err->msg[0] = '\0';
	return gw_boot_load(ram, &req, entry, err);
}

static struct gw_ram *make_ram(uint64_t size)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_ram *ram;

	assert_int_equal(gw_ram_new(size, GW_GPA_HOLE_START, GW_GPA_HOLE_END, &ram, &err), 0);
	return ram;
}

/* Loading must fail, with words that hold `text`. */
static void refused(const void *kernel, size_t len, uint64_t memory, const char *text)
{
	struct gw_ram *ram = make_ram(memory);
	struct gw_boot_entry entry;
	struct gw_error err = GW_ERROR_INIT;

	assert_true(load(ram, kernel, len, NULL, 0, "", &entry, &err) < 0);
	if (!strstr(err.msg, text))
		fail_msg("want \"%s\" in: %s", text, err.msg);
	gw_ram_free(ram);
}

static void test_bzimage(void **arg)
{
	static const uint8_t initrd[5000] = "initrd";
	struct gw_ram *ram = make_ram(64 * MIB);
	struct gw_boot_entry entry;
	struct gw_error err = GW_ERROR_INIT;
	struct boot_params zero;
	struct bz bz;

	make_bzimage(&bz);
	assert_int_equal(load(ram, bz.bytes, bz.len, initrd, sizeof(initrd), "a b c", &entry, &err), 0);
	assert_int_equal(entry.mode, GW_BOOT_LONG);
	assert_int_equal(entry.rip, 16 * MIB + 0x200);
	assert_memory_equal(gw_ram_ptr(ram, 16 * MIB, PAYLOAD), bz.bytes + SETUP_BYTES, PAYLOAD);
	assert_int_equal(gw_ram_read(ram, entry.info, &zero, sizeof(zero)), 0);
	assert_int_equal(zero.hdr.header, 0x53726448);
	assert_int_equal(zero.acpi_rsdp_addr, GW_GPA_ACPI);
	assert_string_equal(gw_ram_ptr(ram, zero.hdr.cmd_line_ptr, 6), "a b c");
	/* As high as it may lie, in whole pages. */
	assert_int_equal(zero.hdr.ramdisk_size, sizeof(initrd));
	assert_int_equal(zero.hdr.ramdisk_image, 64 * MIB - 2 * GW_PAGE_SIZE);
	assert_memory_equal(gw_ram_ptr(ram, zero.hdr.ramdisk_image, sizeof(initrd)), initrd, sizeof(initrd));
	assert_int_equal(zero.e820_table[0].addr, 0);
	assert_int_equal(zero.e820_table[zero.e820_entries - 1].type, GW_MEM_RESERVED);
	gw_ram_free(ram);
}

static void test_bzimage_places(void **arg)
{
	struct gw_bzimage b = { .init_size = 8 * MIB, .pref_address = 16 * MIB, .alignment = 2 * MIB, .relocatable = true };
	struct gw_error err = GW_ERROR_INIT;
	uint64_t gpa;

	assert_int_equal(gw_bzimage_place("k", &b, 64 * MIB, &gpa, &err), 0);
	assert_int_equal(gpa, 16 * MIB);
	/* Too little above its wish: lower, aligned. */
	assert_int_equal(gw_bzimage_place("k", &b, 20 * MIB, &gpa, &err), 0);
	assert_int_equal(gpa, 2 * MIB);
	b.relocatable = false;
	assert_int_equal(gw_bzimage_place("k", &b, 20 * MIB, &gpa, &err), -ENOMEM);
	b.relocatable = true;
	b.init_size = 19 * MIB;
	assert_int_equal(gw_bzimage_place("k", &b, 20 * MIB, &gpa, &err), -ENOMEM);
	assert_non_null(strstr(err.msg, "needs 20 MiB"));
	b.pref_address = UINT64_MAX - 4095;
	b.init_size = UINT64_MAX;
	assert_int_equal(gw_bzimage_place("k", &b, 20 * MIB, &gpa, &err), -ENOMEM);
}

static void test_bzimage_refused(void **arg)
{
	struct bz bz;

	make_bzimage(&bz);
	refused(bz.bytes, bz.len - 16, 64 * MIB, "truncated: the header says");
	refused(bz.bytes, SETUP_BYTES, 64 * MIB, "truncated");
	refused(bz.bytes, 0x210, 64 * MIB, "truncated");
	header(&bz)->relocatable_kernel = 0;
	refused(bz.bytes, bz.len, 16 * MIB, "needs 3 MiB of memory at 16 MiB");
	header(&bz)->init_size = 0xffffffff;
	refused(bz.bytes, bz.len, 64 * MIB, "needs 4096 MiB of memory");
	make_bzimage(&bz);
	header(&bz)->init_size = 0;
	refused(bz.bytes, bz.len, 64 * MIB, "no size in memory");
	make_bzimage(&bz);
	header(&bz)->version = 0x0203;
	refused(bz.bytes, bz.len, 64 * MIB, "boot protocol 2.03");
	make_bzimage(&bz);
	header(&bz)->loadflags = 0;
	refused(bz.bytes, bz.len, 64 * MIB, "zImage");
	make_bzimage(&bz);
	header(&bz)->xloadflags = 0;
	refused(bz.bytes, bz.len, 64 * MIB, "32-bit kernel");
	make_bzimage(&bz);
	header(&bz)->kernel_alignment = 3;
	refused(bz.bytes, bz.len, 64 * MIB, "alignment");
	make_bzimage(&bz);
	header(&bz)->syssize = 0;
	refused(bz.bytes, bz.len, 64 * MIB, "no kernel behind it");
	make_bzimage(&bz);
	header(&bz)->syssize = UINT32_MAX;
	refused(bz.bytes, bz.len, 64 * MIB, "truncated");
}

static void test_other_files(void **arg)
{
	refused("", 0, 64 * MIB, "is empty");
	refused("\x1f\x8b\x08......", 9, 64 * MIB, "is a gzip'ed file, not a kernel");
	refused("070701......", 12, 64 * MIB, "cpio archive");
	refused("QFI\xfb....", 8, 64 * MIB, "qcow2");
	refused("hello world", 11, 64 * MIB, "neither a Linux bzImage nor an ELF file");
}

static void test_cmdline_and_initrd(void **arg)
{
	static uint8_t initrd[60 * MIB];
	struct gw_ram *ram = make_ram(64 * MIB);
	struct gw_boot_entry entry;
	struct gw_error err = GW_ERROR_INIT;
	char cmdline[4096];
	struct bz bz;

	make_bzimage(&bz);
	memset(cmdline, 'x', sizeof(cmdline));
	cmdline[2047] = '\0';
	assert_int_equal(load(ram, bz.bytes, bz.len, NULL, 0, cmdline, &entry, &err), 0);
	cmdline[2047] = 'x';
	cmdline[2048] = '\0';
	assert_int_equal(load(ram, bz.bytes, bz.len, NULL, 0, cmdline, &entry, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "2048 bytes, this kernel takes 2047"));
	assert_int_equal(load(ram, bz.bytes, bz.len, initrd, sizeof(initrd), "", &entry, &err), -ENOMEM);
	assert_non_null(strstr(err.msg, "initrd has 61 MiB"));
	/* Not above what the kernel can reach. */
	header(&bz)->initrd_addr_max = 32 * MIB - 1;
	assert_int_equal(load(ram, bz.bytes, bz.len, initrd, 4096, "", &entry, &err), 0);
	assert_int_equal(((struct boot_params *)gw_ram_ptr(ram, entry.info, 4096))->hdr.ramdisk_image, 32 * MIB - 4096);
	header(&bz)->initrd_addr_max = 17 * MIB;
	assert_int_equal(load(ram, bz.bytes, bz.len, initrd, 4096, "", &entry, &err), -ENOMEM);
	gw_ram_free(ram);
}

/* An ELF kernel: header, two program headers, a note, some bytes of code. */
struct elf_file {
	Elf64_Ehdr eh;
	Elf64_Phdr load;
	Elf64_Phdr note;
	uint32_t note_head[3];
	char note_name[4];
	uint32_t note_desc[2];
	uint8_t code[64];
};

static void make_elf(struct elf_file *f)
{
	memset(f, 0, sizeof(*f));
	memcpy(f->eh.e_ident, ELFMAG, SELFMAG);
	f->eh.e_ident[EI_CLASS] = ELFCLASS64;
	f->eh.e_ident[EI_DATA] = ELFDATA2LSB;
	f->eh.e_type = ET_EXEC;
	f->eh.e_machine = EM_X86_64;
	f->eh.e_phoff = offsetof(struct elf_file, load);
	f->eh.e_phentsize = sizeof(Elf64_Phdr);
	f->eh.e_phnum = 2;
	f->load = (Elf64_Phdr){ .p_type = PT_LOAD, .p_offset = offsetof(struct elf_file, code), .p_paddr = 16 * MIB,
				.p_filesz = 64, .p_memsz = 3 * MIB };
	f->note = (Elf64_Phdr){ .p_type = PT_NOTE, .p_offset = offsetof(struct elf_file, note_head), .p_filesz = 24, .p_align = 4 };
	f->note_head[0] = 4;
	f->note_head[1] = 8;
	f->note_head[2] = 18;
	memcpy(f->note_name, "Xen", 4);
	f->note_desc[0] = 16 * MIB + 8;
	memset(f->code, 0xf4, sizeof(f->code));
}

static void test_pvh(void **arg)
{
	static const uint8_t initrd[100] = "initrd";
	struct gw_ram *ram = make_ram(64 * MIB);
	struct gw_boot_entry entry;
	struct gw_error err = GW_ERROR_INIT;
	const uint8_t *info;
	struct elf_file f;

	make_elf(&f);
	assert_int_equal(load(ram, &f, sizeof(f), initrd, sizeof(initrd), "x=y", &entry, &err), 0);
	assert_int_equal(entry.mode, GW_BOOT_PROTECTED);
	assert_int_equal(entry.rip, 16 * MIB + 8);
	assert_memory_equal(gw_ram_ptr(ram, 16 * MIB, 64), f.code, 64);
	info = gw_ram_ptr(ram, entry.info, 56);
	assert_int_equal(gw_get_le32(info), 0x336ec578);
	assert_int_equal(gw_get_le32(info + 12), 1);
	assert_string_equal(gw_ram_ptr(ram, gw_get_le64(info + 24), 4), "x=y");
	assert_int_equal(gw_get_le64(info + 32), GW_GPA_ACPI);
	assert_int_equal(gw_get_le64(gw_ram_ptr(ram, gw_get_le64(info + 16), 8)), 64 * MIB - 4096);
	gw_ram_free(ram);
}

static void test_pvh_refused(void **arg)
{
	struct elf_file f;

	make_elf(&f);
	refused(&f, 40, 64 * MIB, "truncated");
	refused(&f, sizeof(f.eh) + 10, 64 * MIB, "truncated");
	refused(&f, sizeof(f) - 1, 64 * MIB, "truncated: a segment");
	f.note_head[2] = 17;
	refused(&f, sizeof(f), 64 * MIB, "without a PVH entry");
	make_elf(&f);
	f.note_head[0] = UINT32_MAX;
	refused(&f, sizeof(f), 64 * MIB, "without a PVH entry");
	make_elf(&f);
	f.note_head[1] = UINT32_MAX;
	refused(&f, sizeof(f), 64 * MIB, "without a PVH entry");
	make_elf(&f);
	f.eh.e_machine = EM_AARCH64;
	refused(&f, sizeof(f), 64 * MIB, "no x86 kernel");
	make_elf(&f);
	f.eh.e_phnum = 60000;
	refused(&f, sizeof(f), 64 * MIB, "60000 program headers");
	make_elf(&f);
	f.eh.e_phoff = UINT64_MAX - 20;
	refused(&f, sizeof(f), 64 * MIB, "");
	make_elf(&f);
	f.load.p_memsz = 100 * MIB;
	refused(&f, sizeof(f), 64 * MIB, "needs memory at 16 to 117 MiB");
	make_elf(&f);
	f.load.p_paddr = 0;
	refused(&f, sizeof(f), 64 * MIB, "needs memory");
	make_elf(&f);
	f.load.p_filesz = 4 * MIB;
	refused(&f, sizeof(f), 64 * MIB, "makes no sense");
	make_elf(&f);
	f.load.p_paddr = UINT64_MAX;
	refused(&f, sizeof(f), 64 * MIB, "makes no sense");
	make_elf(&f);
	f.note_desc[0] = 0xfffffff0;
	refused(&f, sizeof(f), 64 * MIB, "entry at 0xfffffff0 is not in memory");
	make_elf(&f);
	f.note.p_filesz = UINT64_MAX;
	refused(&f, sizeof(f), 64 * MIB, "notes of");
}

static void test_memory_map(void **arg)
{
	static const uint64_t sizes[] = { 16 * MIB, 128 * MIB, 3072 * MIB, 3073 * MIB, 64 * 1024 * MIB };
	struct gw_mem_range r[GW_MEM_RANGES_MAX];

	for (size_t s = 0; s < ARRAY_SIZE(sizes); s++) {
		struct gw_ram *ram = make_ram(sizes[s]);
		unsigned n = gw_memmap(ram, r);
		uint64_t end = 0, total = 0;

		assert_in_range(n, 1, GW_MEM_RANGES_MAX);
		for (unsigned i = 0; i < n; i++) {
			assert_true(r[i].gpa >= end);
			end = r[i].gpa + r[i].size;
			if (r[i].type != GW_MEM_RAM)
				continue;
			total += r[i].size;
			assert_non_null(gw_ram_ptr(ram, r[i].gpa, r[i].size));
		}
		/* All but the hole of a PC below 1 MiB. */
		assert_int_equal(total, sizes[s] - (MIB - GW_GPA_EBDA));
		gw_ram_free(ram);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bzimage),
		cmocka_unit_test(test_bzimage_places),
		cmocka_unit_test(test_bzimage_refused),
		cmocka_unit_test(test_other_files),
		cmocka_unit_test(test_cmdline_and_initrd),
		cmocka_unit_test(test_pvh),
		cmocka_unit_test(test_pvh_refused),
		cmocka_unit_test(test_memory_map),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
