// SPDX-License-Identifier: Apache-2.0
/* godwit-vmm's command line. */
#ifndef GW_VMM_OPTIONS_H
#define GW_VMM_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "vmm/vm.h"

#define GW_VMM_VERSION "0.1.0"

struct gw_options {
	struct gw_vm_config config; /* its strings are owned */
	char *control;
	char *journal;
	char *console_log;
	uint64_t epoch; /* 0: none told */
	bool no_tty;
	bool debug;
};

/* Ends the process on --help, --version and mistakes, as argp does. */
void gw_options_parse(struct gw_options *opts, int argc, char **argv);
void gw_options_release(struct gw_options *opts);

/* "path=F[,ro][,name=N]" and "tap=NAME[,mac=M][,name=N]". A path may hold commas: options are taken from the end. */
int gw_options_parse_disk(struct gw_vm_config *config, const char *text, struct gw_error *err);
int gw_options_parse_net(struct gw_vm_config *config, const char *text, struct gw_error *err);
/* What needs the whole command line: names and MAC addresses that were not given, names given twice. */
int gw_options_complete(struct gw_vm_config *config, struct gw_error *err);

#endif
