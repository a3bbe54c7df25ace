// SPDX-License-Identifier: Apache-2.0
/* ACPI tables: every checksum and pointer, and the DSDT's byte code as iasl understands it. */
#include "tests/unit/cmocka-all.h"

#include <string.h>
#include <sys/wait.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "vmm/acpi.h"
#include "vmm/memmap.h"
#include "vmm/pm.h"

static const struct gw_acpi_config config = { .cpus = 32, .pci64_base = 0x800000000ull, .pci64_size = 0x800000000ull };

static void build(struct gw_buf *out, const struct gw_acpi_config *c)
{
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(gw_acpi_build(c, GW_GPA_ACPI, out, &err), 0);
	assert_true(out->len <= GW_ACPI_MAX);
}

static uint8_t sum(const uint8_t *p, size_t len)
{
	uint8_t s = 0;

	while (len--)
		s = (uint8_t)(s + *p++);
	return s;
}

/* The table at `gpa`, checked. */
static const uint8_t *table(const struct gw_buf *buf, uint64_t gpa, const char *signature)
{
	const uint8_t *t;
	uint32_t len;

	assert_in_range(gpa, GW_GPA_ACPI, GW_GPA_ACPI + buf->len - 36);
	t = buf->data + (gpa - GW_GPA_ACPI);
	len = gw_get_le32(t + 4);
	assert_memory_equal(t, signature, 4);
	assert_in_range(len, 36, buf->len - (gpa - GW_GPA_ACPI));
	assert_int_equal(sum(t, len), 0);
	return t;
}

static const uint8_t *xsdt_of(const struct gw_buf *buf)
{
	assert_memory_equal(buf->data, "RSD PTR ", 8);
	assert_int_equal(sum(buf->data, 20), 0);
	assert_int_equal(sum(buf->data, 36), 0);
	return table(buf, gw_get_le64(buf->data + 24), "XSDT");
}

static void test_tables(void **arg)
{
	gw_autobuf buf = GW_BUF_INIT;
	const uint8_t *xsdt, *fadt, *madt;
	unsigned lapics = 0;

	build(&buf, &config);
	xsdt = xsdt_of(&buf);
	assert_int_equal(gw_get_le32(xsdt + 4), 36 + 3 * 8);
	fadt = table(&buf, gw_get_le64(xsdt + 36), "FACP");
	assert_int_equal(gw_get_le32(fadt + 4), 276);
	assert_int_equal(gw_get_le16(fadt + 46), 9);
	table(&buf, gw_get_le64(fadt + 140), "DSDT");
	assert_int_equal(gw_get_le32(fadt + 40), gw_get_le64(fadt + 140));
	assert_int_equal(gw_get_le32(fadt + 36) % 64, 0);
	/* General-purpose events: the same block by both addresses. */
	assert_int_equal(gw_get_le32(fadt + 80), GW_PM_GPE0);
	assert_int_equal(gw_get_le64(fadt + 224), GW_PM_GPE0);
	assert_int_equal(fadt[92] * 8, fadt[221]);
	madt = table(&buf, gw_get_le64(xsdt + 44), "APIC");
	for (uint32_t at = 44; at < gw_get_le32(madt + 4); at += madt[at + 1]) {
		assert_true(madt[at + 1] >= 2);
		if (madt[at] == 0)
			assert_int_equal(madt[at + 3], lapics++);
	}
	assert_int_equal(lapics, 32);
	table(&buf, gw_get_le64(xsdt + 52), "MCFG");
}

/* Runs iasl's disassembler on the DSDT and returns what it wrote. */
static void disassemble(const struct gw_acpi_config *c, char *out, size_t size)
{
	gw_autobuf buf = GW_BUF_INIT;
	char dir[] = "/tmp/godwit-acpi-XXXXXX", path[64], command[256];
	const uint8_t *fadt, *dsdt;
	FILE *f;
	size_t n;

	build(&buf, c);
	fadt = table(&buf, gw_get_le64(xsdt_of(&buf) + 36), "FACP");
	dsdt = table(&buf, gw_get_le64(fadt + 140), "DSDT");
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/dsdt.aml", dir);
	f = fopen(path, "we");
	assert_non_null(f);
	assert_int_equal(fwrite(dsdt, 1, gw_get_le32(dsdt + 4), f), gw_get_le32(dsdt + 4));
	fclose(f);
	/* Taken apart and put together again: the compiler finds what the disassembler lets pass. */
	snprintf(command, sizeof(command), "cd %s && iasl -d dsdt.aml > log 2>&1 && iasl -p again dsdt.dsl >> log 2>&1 && "
		 "cat dsdt.dsl log", dir);
	f = popen(command, "re");
	assert_non_null(f);
	n = fread(out, 1, size - 1, f);
	out[n] = '\0';
	n = (size_t)pclose(f);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	assert_int_equal(system(command), 0);
	if (n)
		fail_msg("iasl: %s", out);
}

static void test_dsdt(void **arg)
{
	static const char *const wanted[] = {
		"Name (_HID, EisaId (\"PNP0A08\")",
		"Name (_CID, EisaId (\"PNP0A03\")",
		"Name (_HID, EisaId (\"PNP0501\")",
		"Name (_HID, EisaId (\"PNP0B00\")",
		"Name (_HID, \"ACPI0007\"",
		"Name (\\_S5, Package (0x04)",
		"Device (CP1F)",
		"Name (_CID, \"VM_Gen_Counter\")",
		"Name (_DDN, \"VM_Gen_Counter\")",
		"Name (ADDR, Package (0x02)",
		"0x000FF000",
		"Scope (\\_GPE)",
		"Method (_E00, 0, NotSerialized)",
		"Notify (\\_SB.VGEN, 0x80)",
		"0x0000000800000000, // Range Minimum",
		"0x0000000FFFFFFFFF, // Range Maximum",
		"0xFEBFFFFF,         // Range Maximum",
		" 0 Errors,",
	};
	static char out[256 << 10];

	if (system("command -v iasl > /dev/null") != 0) {
		print_message("iasl (acpica-tools) is not installed: the DSDT is not checked\n");
		skip();
	}
	disassemble(&config, out, sizeof(out));
	for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
		if (!strstr(out, wanted[i]))
			fail_msg("no \"%s\" in: %s", wanted[i], out);
	}
	/* Without room for a window above RAM there is none. */
	disassemble(&(struct gw_acpi_config){ .cpus = 1 }, out, sizeof(out));
	assert_null(strstr(out, "QWordMemory"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tables),
		cmocka_unit_test(test_dsdt),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
