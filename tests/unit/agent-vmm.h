// SPDX-License-Identifier: Apache-2.0
/*
 * A VMM without KVM, for tests of the agent: takes godwit-vmm's command line, answers on its control socket, moves its VM with the
 * real engine (migrate/) and keeps the real journal. Its guest is a thread that writes RAM (move-vm.h).
 *
 * While its VM runs it holds a lock on a file that all VMMs of that name share (GW_TEST_DIR/NAME.running); a second one that would
 * run at the same time leaves GW_TEST_DIR/NAME.two behind: invariant 1 is broken.
 *
 * Environment: GW_TEST_DEAF=1: it does not hear its power button. GW_TEST_OLD=1: it is of a version that knew no balloon.
 * GW_TEST_SPARE: its guest has that many MiB available, and its balloon is of the VM's memory. GW_TEST_DIR/NO-USERFAULTFD: while this file exists,
 * it refuses to share, with GW_TEST_SHARING=1 because it can have none. Its sharing has the figures of fill_share(); with GW_TEST_SHARING=1 it is the real one, on the VM's RAM.
 * GW_TEST_REMEMBER=1: its guest writes to more of its memory; each time that it runs a byte more is in GW_TEST_DIR/NAME.ran, and each time that all of a
 * snapshot is loaded in NAME.equal, or in NAME.wrong where the memory is not what the guest has written.
 * A kernel whose path ends in "/bad" does not start.
 */
#ifndef GW_TESTS_AGENT_VMM_H
#define GW_TESTS_AGENT_VMM_H

int agent_vmm_main(int argc, char **argv);

#endif
