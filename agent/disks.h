// SPDX-License-Identifier: Apache-2.0
/*
 * Whether a disk's path names the same disk on two hosts. Each host writes down what identifies it; the destination compares.
 *
 * - nbd:// URIs name a server: the same text is the same disk. nbd+unix:// names a socket of this host only.
 * - A file on a network file system: file system type, inode number and size.
 * - A file or block device of this host only: the host's boot id is part of it, so that it is the same only when both
 *   agents are on one machine. Block devices with a world-wide name use that instead.
 * - A read-only file may as well be another one with the same content.
 */
#ifndef GW_AGENT_DISKS_H
#define GW_AGENT_DISKS_H

#include "agent/agent.h"
#include "proto/agent.pb-c.h"

/* Owned (godwit__disk_identity__free_unpacked). `with_digest`: of read-only files, the content's as well. */
int gw_disk_identify(struct gw_agent *a, const Godwit__VmDisk *disk, bool with_digest, Godwit__DiskIdentity **ret,
		     struct gw_error *err);
/* 0 when `theirs`, from the source, and the disk here are the same; else -EXDEV, with the reason. */
int gw_disk_compare(struct gw_agent *a, const Godwit__VmDisk *disk, const Godwit__DiskIdentity *theirs, struct gw_error *err);

#endif
