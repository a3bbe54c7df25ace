// SPDX-License-Identifier: Apache-2.0
/* ACPI tables; see acpi.h. Layouts: ACPI 6.4 §5.2; MCFG: PCI Firmware Specification 3.3 §4.1. */
#include "vmm/acpi.h"

#include <errno.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "vmm/aml.h"
#include "vmm/memmap.h"
#include "vmm/pm.h"
#include "vmm/vm.h"

#define HEADER_SIZE 36
#define CHECKSUM_AT 9
#define RSDP_SIZE 36
#define FADT_SIZE 276
#define TABLES_MAX 8

#define IOAPIC_GPA 0xfec00000u
#define LAPIC_GPA 0xfee00000u

struct tables {
	struct gw_buf *out;
	uint64_t gpa;                /* of out->data[start] */
	size_t start;
	uint64_t address[TABLES_MAX]; /* what the XSDT lists */
	unsigned count;
	bool failed;
};

static void put(struct tables *t, const void *data, size_t len)
{
	if (!t->failed && gw_buf_append(t->out, data, len) < 0)
		t->failed = true;
}

static uint64_t here(const struct tables *t)
{
	return t->gpa + (t->out->len - t->start);
}

static uint8_t checksum(const uint8_t *data, size_t len)
{
	uint8_t sum = 0;

	for (size_t i = 0; i < len; i++)
		sum = (uint8_t)(sum + data[i]);
	return (uint8_t)-sum;
}

/* The common header (§5.2.6); returns where the table begins in the buffer. Tables begin at multiples of 64. */
static size_t begin(struct tables *t, const char *signature, uint8_t revision)
{
	static const uint8_t zeros[64];
	uint8_t h[HEADER_SIZE] = { 0 };
	size_t at;

	put(t, zeros, (size_t)(-here(t) & 63));
	at = t->out->len;
	memcpy(h, signature, 4);
	h[8] = revision;
	memcpy(h + 10, "GODWIT", 6);
	memcpy(h + 16, "GODWITVM", 8);
	gw_put_le32(h + 24, 1);
	memcpy(h + 28, "GDWT", 4);
	gw_put_le32(h + 32, 1);
	put(t, h, sizeof(h));
	return at;
}

/* Fills length and checksum; the address goes to the XSDT when `listed`. */
static uint64_t finish(struct tables *t, size_t at, bool listed)
{
	uint64_t gpa = t->gpa + (at - t->start);
	uint8_t *table;

	if (t->failed)
		return 0;
	table = t->out->data + at;
	gw_put_le32(table + 4, (uint32_t)(t->out->len - at));
	table[CHECKSUM_AT] = checksum(table, t->out->len - at);
	if (listed)
		t->address[t->count++] = gpa;
	return gpa;
}

static void add_pci(struct gw_aml *aml, const struct gw_acpi_config *config)
{
	struct gw_aml_mark dev = gw_aml_device(aml, "PCI0");
	struct gw_aml_crs crs = { GW_BUF_INIT };

	gw_aml_name_eisaid(aml, "_HID", "PNP0A08");
	gw_aml_name_eisaid(aml, "_CID", "PNP0A03");
	gw_aml_name_int(aml, "_UID", 0);
	gw_aml_name_int(aml, "_SEG", 0);
	gw_aml_name_int(aml, "_BBN", 0);
	gw_aml_crs_bus(aml, &crs, 0, 0);
	gw_aml_crs_io(aml, &crs, 0xcf8, 8);
	gw_aml_crs_io_window(aml, &crs, 0x0000, 0x0cf7);
	gw_aml_crs_io_window(aml, &crs, 0x0d00, 0xffff);
	gw_aml_crs_memory32_window(aml, &crs, (uint32_t)GW_GPA_PCI32, (uint32_t)GW_GPA_PCI32_SIZE);
	if (config->pci64_size)
		gw_aml_crs_memory64_window(aml, &crs, config->pci64_base, config->pci64_size);
	gw_aml_name_crs(aml, &crs);
	gw_aml_end(aml, dev);

	/* Motherboard resources: ECAM belongs to nobody else (PCI Firmware Specification 3.3 §4.1.2). */
	dev = gw_aml_device(aml, "MRES");
	gw_aml_name_eisaid(aml, "_HID", "PNP0C02");
	gw_aml_name_int(aml, "_UID", 0);
	gw_aml_crs_memory32_fixed(aml, &crs, (uint32_t)GW_GPA_ECAM, (uint32_t)GW_GPA_ECAM_SIZE);
	gw_aml_crs_io(aml, &crs, GW_PM1_EVENT, GW_PM_PORTS);
	gw_aml_name_crs(aml, &crs);
	gw_aml_end(aml, dev);
}

static void add_isa_device(struct gw_aml *aml, const char *name, const char *hid, uint16_t port, uint8_t ports, unsigned irq)
{
	struct gw_aml_mark dev = gw_aml_device(aml, name);
	struct gw_aml_crs crs = { GW_BUF_INIT };

	gw_aml_name_eisaid(aml, "_HID", hid);
	gw_aml_name_int(aml, "_UID", 0);
	gw_aml_crs_io(aml, &crs, port, ports);
	gw_aml_crs_irq(aml, &crs, irq);
	gw_aml_name_crs(aml, &crs);
	gw_aml_end(aml, dev);
}

static void add_processors(struct gw_aml *aml, unsigned cpus)
{
	for (unsigned i = 0; i < cpus; i++) {
		char name[8];
		struct gw_aml_mark dev;

		snprintf(name, sizeof(name), "CP%02X", (uint8_t)i);
		dev = gw_aml_device(aml, name);
		gw_aml_name_string(aml, "_HID", "ACPI0007");
		gw_aml_name_int(aml, "_UID", i);
		gw_aml_end(aml, dev);
	}
}

/*
 * Microsoft's "Virtual Machine Generation ID" (2012): ADDR tells where the identifier lies, low and high half of the address; 0x80 says that
 * it has changed. _HID is the hypervisor's own name for it.
 */
static void add_generation_id(struct gw_aml *aml)
{
	static const uint64_t address[2] = { (uint32_t)GW_GPA_GENID, GW_GPA_GENID >> 32 };
	struct gw_aml_mark dev = gw_aml_device(aml, "VGEN");

	gw_aml_name_string(aml, "_HID", "GDWT0001");
	gw_aml_name_string(aml, "_CID", "VM_Gen_Counter");
	gw_aml_name_string(aml, "_DDN", "VM_Gen_Counter");
	gw_aml_name_package(aml, "ADDR", address, ARRAY_SIZE(address));
	gw_aml_end(aml, dev);
}

/* General-purpose event 0, edge-triggered (§5.6.4.1). */
static void add_events(struct gw_aml *aml)
{
	struct gw_aml_mark scope = gw_aml_scope(aml, "\\_GPE"), method = gw_aml_method(aml, "_E00");

	_Static_assert(GW_PM_GPE_GENID == 1u << 0, "as the method's name says");
	gw_aml_notify(aml, "\\_SB_.VGEN", 0x80);
	gw_aml_end(aml, method);
	gw_aml_end(aml, scope);
}

static uint64_t add_dsdt(struct tables *t, const struct gw_acpi_config *config)
{
	static const uint64_t s5[4] = { GW_PM_S5_TYPE, GW_PM_S5_TYPE, 0, 0 };
	struct gw_aml aml = { t->out, false };
	size_t at = begin(t, "DSDT", 2);
	struct gw_aml_mark scope;

	gw_aml_name_package(&aml, "\\_S5_", s5, ARRAY_SIZE(s5));
	scope = gw_aml_scope(&aml, "\\_SB_");
	add_pci(&aml, config);
	add_isa_device(&aml, "COM1", "PNP0501", 0x3f8, 8, 4);
	add_isa_device(&aml, "RTC_", "PNP0B00", 0x70, 2, 8);
	add_processors(&aml, config->cpus);
	add_generation_id(&aml);
	gw_aml_end(&aml, scope);
	add_events(&aml);
	t->failed |= gw_aml_failed(&aml);
	return finish(t, at, false);
}

/* Generic address structure (§5.2.3.2) of a block of I/O ports. */
static void io_address(uint8_t *at, uint16_t port, unsigned bytes)
{
	at[0] = 1;
	at[1] = (uint8_t)(bytes * 8);
	at[2] = 0;
	at[3] = bytes == 4 ? 3 : bytes; /* access size: byte, word, dword */
	gw_put_le64(at + 4, port);
}

static uint64_t add_facs(struct tables *t)
{
	uint8_t facs[64] = "FACS";
	static const uint8_t zeros[64];
	uint64_t gpa;

	put(t, zeros, (size_t)(-here(t) & 63));
	gpa = here(t);
	gw_put_le32(facs + 4, sizeof(facs));
	facs[32] = 2;
	put(t, facs, sizeof(facs));
	return gpa;
}

static void add_fadt(struct tables *t, uint64_t dsdt, uint64_t facs)
{
	const uint32_t wbinvd = 1u << 0, proc_c1 = 1u << 2, no_sleep_button = 1u << 5, no_rtc_wake = 1u << 6,
		       timer_32 = 1u << 8, reset_reg = 1u << 10;
	uint8_t f[FADT_SIZE] = { 0 };
	size_t at = begin(t, "FACP", 6);

	gw_put_le32(f + 36, (uint32_t)facs);
	gw_put_le32(f + 40, (uint32_t)dsdt);
	gw_put_le16(f + 46, GW_PM_SCI);
	/* SMI command port 0: always in ACPI mode. */
	gw_put_le32(f + 56, GW_PM1_EVENT);
	gw_put_le32(f + 64, GW_PM1_CONTROL);
	gw_put_le32(f + 76, GW_PM_TIMER);
	gw_put_le32(f + 80, GW_PM_GPE0);
	f[88] = 4;
	f[89] = 2;
	f[91] = 4;
	f[92] = GW_PM_GPE0_SIZE;
	gw_put_le16(f + 96, 0xffff); /* no C2 */
	gw_put_le16(f + 98, 0xffff); /* no C3 */
	f[108] = 0x32;               /* RTC's century register */
	/* Legacy devices (the serial port), no VGA; bit 1 clear: no keyboard controller to be probed for. */
	gw_put_le16(f + 109, 1u << 0 | 1u << 2);
	/* The power button is a fixed one: PWR_BUTTON (bit 4) clear. */
	gw_put_le32(f + 112, wbinvd | proc_c1 | no_sleep_button | no_rtc_wake | timer_32 | reset_reg);
	io_address(f + 116, GW_PM_RESET, 1);
	f[128] = GW_PM_RESET_VALUE;
	f[131] = 4; /* minor version: ACPI 6.4 */
	gw_put_le64(f + 132, facs);
	gw_put_le64(f + 140, dsdt);
	io_address(f + 148, GW_PM1_EVENT, 4);
	f[151] = 2; /* its halves are reached as words */
	io_address(f + 172, GW_PM1_CONTROL, 2);
	io_address(f + 208, GW_PM_TIMER, 4);
	io_address(f + 220, GW_PM_GPE0, GW_PM_GPE0_SIZE);
	f[223] = 1; /* reached byte by byte */
	memcpy(f + 268, "GODWIT", 6);
	put(t, f + HEADER_SIZE, sizeof(f) - HEADER_SIZE);
	finish(t, at, true);
}

static void add_madt(struct tables *t, unsigned cpus)
{
	uint8_t fixed[8] = { 0 };
	uint8_t ioapic[12] = { 1, 12, 0 };
	/* Interrupt source override: bus 0 (ISA), source, GSI, flags (polarity, trigger). */
	uint8_t timer[10] = { 2, 10, 0, 0, 2 };
	uint8_t sci[10] = { 2, 10, 0, GW_PM_SCI, GW_PM_SCI, 0, 0, 0, 0x0d }; /* high, level */
	uint8_t nmi[6] = { 4, 6, 0xff, 0, 0, 1 }; /* LINT1 of all */
	size_t at = begin(t, "APIC", 5);

	gw_put_le32(fixed, LAPIC_GPA);
	gw_put_le32(fixed + 4, 1); /* there are 8259s too */
	put(t, fixed, sizeof(fixed));
	for (unsigned i = 0; i < cpus; i++) {
		uint8_t lapic[8] = { 0, 8, (uint8_t)i, (uint8_t)i, 1 };

		put(t, lapic, sizeof(lapic));
	}
	gw_put_le32(ioapic + 4, IOAPIC_GPA);
	put(t, ioapic, sizeof(ioapic));
	put(t, timer, sizeof(timer));
	put(t, sci, sizeof(sci));
	put(t, nmi, sizeof(nmi));
	finish(t, at, true);
}

static void add_mcfg(struct tables *t)
{
	uint8_t body[24] = { 0 };
	size_t at = begin(t, "MCFG", 1);

	gw_put_le64(body + 8, GW_GPA_ECAM);
	/* Bus 0 alone exists, though the window has room for all. */
	put(t, body, sizeof(body));
	finish(t, at, true);
}

static uint64_t add_xsdt(struct tables *t)
{
	size_t at = begin(t, "XSDT", 1);

	for (unsigned i = 0; i < t->count; i++) {
		uint8_t entry[8];

		gw_put_le64(entry, t->address[i]);
		put(t, entry, sizeof(entry));
	}
	return finish(t, at, false);
}

/* §5.2.5.3: the first checksum covers the 20 bytes of ACPI 1.0. */
static void fill_rsdp(uint8_t *rsdp, uint64_t xsdt)
{
	memset(rsdp, 0, RSDP_SIZE);
	memcpy(rsdp, "RSD PTR ", 8);
	memcpy(rsdp + 9, "GODWIT", 6);
	rsdp[15] = 2;
	gw_put_le32(rsdp + 20, RSDP_SIZE);
	gw_put_le64(rsdp + 24, xsdt);
	rsdp[8] = checksum(rsdp, 20);
	rsdp[32] = checksum(rsdp, RSDP_SIZE);
}

int gw_acpi_build(const struct gw_acpi_config *config, uint64_t gpa, struct gw_buf *out, struct gw_error *err)
{
	struct tables t = { .out = out, .gpa = gpa, .start = out->len };
	const uint8_t room[RSDP_SIZE] = { 0 };
	uint64_t dsdt, xsdt;

	put(&t, room, sizeof(room));
	dsdt = add_dsdt(&t, config);
	add_fadt(&t, dsdt, add_facs(&t));
	add_madt(&t, config->cpus);
	add_mcfg(&t);
	xsdt = add_xsdt(&t);
	if (t.failed)
		return gw_error_set(err, ENOMEM, "out of memory");
	fill_rsdp(out->data + t.start, xsdt);
	return 0;
}

int gw_acpi_load(struct gw_ram *ram, const struct gw_acpi_config *config, struct gw_error *err)
{
	gw_autobuf tables = GW_BUF_INIT;
	int r = gw_acpi_build(config, GW_GPA_ACPI, &tables, err);

	if (r < 0)
		return r;
	if (tables.len > GW_ACPI_MAX)
		return gw_error_set(err, E2BIG, "ACPI tables of %zu bytes", tables.len);
	r = gw_ram_write(ram, GW_GPA_ACPI, tables.data, tables.len);
	return r < 0 ? gw_error_errno(err, r, "cannot write the ACPI tables") : 0;
}
