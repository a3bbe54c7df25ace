// SPDX-License-Identifier: Apache-2.0
/* A devhost without KVM: RAM, buses and a device thread are real; interrupts and ioeventfds are kept in tables. */
#ifndef GW_TESTS_UNIT_FAKE_HOST_H
#define GW_TESTS_UNIT_FAKE_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/ram/ram.h"
#include "vmm/devhost.h"
#include "vmm/pci.h"

#define FAKE_MAX_MSI 64
#define FAKE_MAX_IOEVENTFD 64

struct gw_msi {
	struct fake_host *fake;
	uint64_t addr;
	uint32_t data;
	unsigned raised; /* atomic */
};

struct fake_host {
	struct gw_devhost host;
	struct gw_pci_bus *pci;
	struct gw_msi *msi[FAKE_MAX_MSI]; /* in order of creation */
	unsigned nmsi;
	unsigned commits;
	struct {
		uint64_t addr;
		int fd;
	} ioeventfd[FAKE_MAX_IOEVENTFD];
	unsigned nioeventfd;
	bool no_ioeventfd; /* refuse them */
	unsigned heard, said; /* frames; atomic */
	uint8_t frame[4];     /* the beginning of the last one */
	bool overdue;         /* atomic */
	unsigned failures; /* atomic */
};

/* 16 MiB of RAM, half of it above 4 GiB. */
#define FAKE_RAM_HALF (8ull << 20)
#define FAKE_HIGH (1ull << 32)

struct fake_host *fake_host_new(void);
/* All devices are gone. */
void fake_host_free(struct fake_host *fake);

/* As a vCPU would. */
void fake_write(struct fake_host *fake, uint64_t addr, uint64_t value, unsigned len);
uint64_t fake_read(struct fake_host *fake, uint64_t addr, unsigned len);
void fake_config_write(struct fake_host *fake, unsigned slot, unsigned reg, uint32_t value, unsigned len);
uint32_t fake_config_read(struct fake_host *fake, unsigned slot, unsigned reg, unsigned len);
/* How often the message with `data` was raised. */
unsigned fake_raised(struct fake_host *fake, uint32_t data);
/* Waits up to 10 s until cond(arg). */
bool fake_wait(bool (*cond)(void *arg), void *arg);

#endif
