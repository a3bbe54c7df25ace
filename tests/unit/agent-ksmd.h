// SPDX-License-Identifier: Apache-2.0
/*
 * With GW_TEST_SHARING=1 the real page-store daemon; else one that stores nothing, for tests of the agent. Takes godwit-ksmd's command line and answers on its control socket.
 * Each client that it is given is a line "PID VM DOMAIN KEY" in GW_TEST_DIR/attached; its figures say that each client of a
 * domain maps 1000 pages and that the first one brought them.
 * GW_TEST_DIR/ksmd-refuses: while this file exists, clients are refused. GW_TEST_DIR/ksmd-hangs: it does not answer.
 */
#ifndef GW_TESTS_AGENT_KSMD_H
#define GW_TESTS_AGENT_KSMD_H

int agent_ksmd_main(int argc, char **argv);

#endif
