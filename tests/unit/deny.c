// SPDX-License-Identifier: Apache-2.0
/* System calls that fail, by seccomp filters; see deny.h. */
#include "deny.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "lib/util.h"

#define IOCTL_UFFD_NEW 0xaa00u
/* _IOWR('f', 16, 96 bytes) */
#define IOCTL_PAGEMAP_SCAN 0xc0606610u

/* The call `nr` (0: none) and the ioctl `cmd` fail. */
static void deny(uint32_t nr, uint32_t cmd, int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, cmd, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error),
	};
	struct sock_fprog prog = { .len = ARRAY_SIZE(code), .filter = code };

	/* Better none than one that denies nothing. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0)
		abort();
}

void deny_userfaultfd(int error)
{
	deny(SYS_userfaultfd, IOCTL_UFFD_NEW, error);
}

void deny_pagemap_scan(void)
{
	deny(UINT32_MAX, IOCTL_PAGEMAP_SCAN, ENOTTY);
}
