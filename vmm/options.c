// SPDX-License-Identifier: Apache-2.0
/* godwit-vmm's command line; see options.h. */
#include "vmm/options.h"

#include <argp.h>
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "lib/parse.h"
#include "lib/util.h"

enum {
	OPT_KERNEL = 256,
	OPT_INITRD,
	OPT_CMDLINE,
	OPT_MEMORY,
	OPT_CPUS,
	OPT_DISK,
	OPT_NET,
	OPT_NAME,
	OPT_CONTROL,
	OPT_INCOMING,
	OPT_JOURNAL,
	OPT_EPOCH,
	OPT_CONSOLE_LOG,
	OPT_NO_TTY,
	OPT_DIRTY_BITMAP,
	OPT_OVERCOMMIT,
	OPT_NO_BALLOON,
	OPT_DEBUG,
};

static const struct argp_option argp_options[] = {
	{ NULL, 0, NULL, 0, "The machine:", 1 },
	{ "kernel", OPT_KERNEL, "FILE", 0, "Linux bzImage, or ELF kernel with a PVH entry", 1 },
	{ "initrd", OPT_INITRD, "FILE", 0, "initial RAM file system", 1 },
	{ "cmdline", OPT_CMDLINE, "TEXT", 0, "the kernel's command line (default: console=ttyS0)", 1 },
	{ "memory", OPT_MEMORY, "SIZE", 0, "such as 512M or 4G (default: 512M)", 1 },
	{ "cpus", OPT_CPUS, "N", 0, "1 to 32 (default: 1)", 1 },
	{ "disk", OPT_DISK, "path=FILE[,ro][,name=N]", 0, "raw image, block device or nbd:// URI; repeatable", 1 },
	{ "net", OPT_NET, "tap=IF[,mac=M][,name=N]", 0, "network card at a tap interface; repeatable", 1 },
	{ "name", OPT_NAME, "NAME", 0, "the VM's name (default: vm)", 1 },
	{ "overcommit", OPT_OVERCOMMIT, NULL, 0, "more memory than the host has available is fine", 1 },
	{ "no-balloon", OPT_NO_BALLOON, NULL, 0, "no balloon: the guest gives no memory back", 1 },
	{ NULL, 0, NULL, 0, "The process:", 2 },
	{ "control", OPT_CONTROL, "PATH", 0, "listen for requests at this UNIX socket", 2 },
	{ "no-tty", OPT_NO_TTY, NULL, 0, "no console on standard input and output", 2 },
	{ "console-log", OPT_CONSOLE_LOG, "FILE", 0, "append what the serial console says to this file", 2 },
	{ "debug", OPT_DEBUG, NULL, 0, "log more", 2 },
	{ NULL, 0, NULL, 0, "Moves:", 3 },
	{ "incoming", OPT_INCOMING, NULL, 0, "do not boot: wait for a VM that moves here", 3 },
	{ "journal", OPT_JOURNAL, "FILE", 0, "where it is kept who owns the VM", 3 },
	{ "epoch", OPT_EPOCH, "N", 0, "epoch of the ownership that this start has", 3 },
	{ "dirty-bitmap", OPT_DIRTY_BITMAP, NULL, 0, "find written pages by KVM's bitmap, not its dirty ring", 3 },
	{ 0 }
};

static int copy_string(char **to, const char *from)
{
	char *copy = strdup(from);

	if (!copy)
		return -ENOMEM;
	free(*to);
	*to = copy;
	return 0;
}

/*
 * Cuts the last ",word" off `text` when the word is `flag`, or begins with `key`: returns a pointer to what follows the
 * key (the empty string for a flag), or NULL.
 */
static char *cut_option(char *text, const char *flag, const char *key)
{
	char *comma = strrchr(text, ',');
	char *word = comma ? comma + 1 : NULL;

	if (!word)
		return NULL;
	if (flag && !strcmp(word, flag)) {
		*comma = '\0';
		return word + strlen(word);
	}
	if (key && !strncmp(word, key, strlen(key))) {
		*comma = '\0';
		return word + strlen(key);
	}
	return NULL;
}

int gw_options_parse_disk(struct gw_vm_config *config, const char *text, struct gw_error *err)
{
	gw_autofree char *copy = NULL;
	struct gw_disk_config disk = { 0 };
	const char *name = NULL;

	if (config->ndisks == GW_MAX_DISKS)
		return gw_error_set(err, EINVAL, "more than %d disks", GW_MAX_DISKS);
	copy = strdup(text);
	if (!copy)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (;;) {
		const char *value;

		if (cut_option(copy, "ro", NULL))
			disk.readonly = true;
		else if ((value = cut_option(copy, NULL, "name=")))
			name = value;
		else
			break;
	}
	if (strncmp(copy, "path=", 5) || !copy[5])
		return gw_error_set(err, EINVAL, "--disk %s: want path=FILE[,ro][,name=N]", text);
	if (name && gw_parse_name(name, "disk name", err) < 0)
		return gw_error_wrap(err, "--disk %s", text);
	if (copy_string(&disk.path, copy + 5) < 0 || (name && copy_string(&disk.name, name) < 0)) {
		free(disk.path);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	config->disks[config->ndisks++] = disk;
	return 0;
}

static bool mac_is_zero(const uint8_t mac[6])
{
	static const uint8_t zero[6];

	return !memcmp(mac, zero, 6);
}

int gw_options_parse_net(struct gw_vm_config *config, const char *text, struct gw_error *err)
{
	gw_autofree char *copy = NULL;
	struct gw_net_config net = { 0 };
	const char *name = NULL, *mac = NULL;

	if (config->nnets == GW_MAX_NETS)
		return gw_error_set(err, EINVAL, "more than %d network cards", GW_MAX_NETS);
	copy = strdup(text);
	if (!copy)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (;;) {
		const char *value;

		if ((value = cut_option(copy, NULL, "name=")))
			name = value;
		else if ((value = cut_option(copy, NULL, "mac=")))
			mac = value;
		else
			break;
	}
	/* A comma that is left: an option nobody knows, though Linux would take it in an interface's name. */
	if (strncmp(copy, "tap=", 4) || strchr(copy, ','))
		return gw_error_set(err, EINVAL, "--net %s: want tap=INTERFACE[,mac=M][,name=N]", text);
	if (gw_parse_ifname(copy + 4, err) < 0 || (mac && gw_parse_mac(mac, net.mac, err) < 0) ||
	    (name && gw_parse_name(name, "network card's name", err) < 0))
		return gw_error_wrap(err, "--net %s", text);
	if (copy_string(&net.tap, copy + 4) < 0 || (name && copy_string(&net.name, name) < 0)) {
		free(net.tap);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	config->nets[config->nnets++] = net;
	return 0;
}

/* A locally administered address that stays the same from start to start, and differs between VMs by name. */
static void derive_mac(const char *vm, unsigned index, uint8_t mac[6])
{
	uint64_t hash = XXH3_64bits_withSeed(vm, strlen(vm), index);

	mac[0] = 0x52;
	mac[1] = 0x54;
	mac[2] = 0x00;
	memcpy(mac + 3, &hash, 3);
}

static int complete_names(struct gw_vm_config *config)
{
	for (unsigned i = 0; i < config->ndisks; i++) {
		char name[4] = { 'v', 'd', (char)('a' + i), '\0' };

		if (!config->disks[i].name && copy_string(&config->disks[i].name, name) < 0)
			return -ENOMEM;
	}
	for (unsigned i = 0; i < config->nnets; i++) {
		char name[16];

		snprintf(name, sizeof(name), "net%u", i);
		if (!config->nets[i].name && copy_string(&config->nets[i].name, name) < 0)
			return -ENOMEM;
		if (mac_is_zero(config->nets[i].mac))
			derive_mac(config->name, i, config->nets[i].mac);
	}
	return 0;
}

int gw_options_complete(struct gw_vm_config *config, struct gw_error *err)
{
	if ((!config->name && copy_string(&config->name, "vm") < 0) ||
	    (!config->cmdline && copy_string(&config->cmdline, "console=ttyS0") < 0) || complete_names(config) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < config->ndisks; i++) {
		for (unsigned k = 0; k < i; k++) {
			if (!strcmp(config->disks[i].name, config->disks[k].name))
				return gw_error_set(err, EINVAL, "two disks are named %s", config->disks[i].name);
		}
	}
	for (unsigned i = 0; i < config->nnets; i++) {
		for (unsigned k = 0; k < i; k++) {
			if (!strcmp(config->nets[i].name, config->nets[k].name) || !strcmp(config->nets[i].tap, config->nets[k].tap))
				return gw_error_set(err, EINVAL, "two network cards share the name %s or the interface %s",
						    config->nets[i].name, config->nets[i].tap);
		}
	}
	if (!config->kernel && !config->incoming)
		return gw_error_set(err, EINVAL, "no --kernel to boot (and not --incoming)");
	return 0;
}

static int parse_machine(struct gw_vm_config *config, int key, const char *arg, struct gw_error *err)
{
	uint64_t n;
	int r;

	switch (key) {
	case OPT_KERNEL:
		return copy_string(&config->kernel, arg);
	case OPT_INITRD:
		return copy_string(&config->initrd, arg);
	case OPT_CMDLINE:
		return copy_string(&config->cmdline, arg);
	case OPT_MEMORY:
		return gw_parse_size(arg, &config->memory, err);
	case OPT_CPUS:
		r = gw_parse_uint(arg, "--cpus", 1, GW_MAX_CPUS, &n, err);
		if (r == 0)
			config->cpus = (unsigned)n;
		return r;
	case OPT_DISK:
		return gw_options_parse_disk(config, arg, err);
	case OPT_NET:
		return gw_options_parse_net(config, arg, err);
	case OPT_NAME:
		r = gw_parse_name(arg, "--name", err);
		return r < 0 ? r : copy_string(&config->name, arg);
	default:
		return -ENOSYS;
	}
}

static int parse_process(struct gw_options *opts, int key, const char *arg, struct gw_error *err)
{
	switch (key) {
	case OPT_CONTROL:
		return copy_string(&opts->control, arg);
	case OPT_JOURNAL:
		return copy_string(&opts->journal, arg);
	case OPT_CONSOLE_LOG:
		return copy_string(&opts->console_log, arg);
	case OPT_EPOCH:
		return gw_parse_uint(arg, "--epoch", 1, INT64_MAX, &opts->epoch, err);
	case OPT_INCOMING:
		opts->config.incoming = true;
		return 0;
	case OPT_NO_TTY:
		opts->no_tty = true;
		return 0;
	case OPT_DIRTY_BITMAP:
		opts->config.dirty_bitmap = true;
		return 0;
	case OPT_OVERCOMMIT:
		opts->config.overcommit = true;
		return 0;
	case OPT_NO_BALLOON:
		opts->config.no_balloon = true;
		return 0;
	case OPT_DEBUG:
		opts->debug = true;
		return 0;
	default:
		return -ENOSYS;
	}
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct gw_options *opts = state->input;
	struct gw_error err = GW_ERROR_INIT;
	int r;

	if (key == ARGP_KEY_ARG)
		argp_error(state, "what is \"%s\"? All settings are options", arg);
	if (key == ARGP_KEY_END) {
		if (gw_options_complete(&opts->config, &err) < 0)
			argp_error(state, "%s", gw_error_text(&err));
		return 0;
	}
	r = parse_machine(&opts->config, key, arg, &err);
	if (r == -ENOSYS)
		r = parse_process(opts, key, arg, &err);
	if (r == -ENOSYS)
		return ARGP_ERR_UNKNOWN;
	if (r < 0)
		argp_error(state, "%s", err.code ? gw_error_text(&err) : strerror(-r));
	return 0;
}

const char *argp_program_version = "godwit-vmm " GW_VMM_VERSION;

void gw_options_parse(struct gw_options *opts, int argc, char **argv)
{
	static const char doc[] =
		"Runs one virtual machine on KVM.\v"
		"The serial console is on the terminal: Ctrl-A x ends the VM, Ctrl-A Ctrl-A sends Ctrl-A. SIGTERM presses the "
		"power button, and a second one ends the VM; SIGUSR1 writes the registers of its vCPUs to the log.\n\n"
		"Exit codes: 0 the guest powered off, was told to quit or moved away; 1 it could not start; 2 it could not go on; "
		"3 the guest crashed.";
	static const struct argp argp = { argp_options, parse_option, NULL, doc, NULL, NULL, NULL };

	memset(opts, 0, sizeof(*opts));
	opts->config.memory = 512ull << 20;
	opts->config.cpus = 1;
	argp_err_exit_status = 1;
	argp_parse(&argp, argc, argv, 0, NULL, opts);
}

void gw_options_release(struct gw_options *opts)
{
	struct gw_vm_config *config = &opts->config;

	for (unsigned i = 0; i < config->ndisks; i++) {
		free(config->disks[i].name);
		free(config->disks[i].path);
	}
	for (unsigned i = 0; i < config->nnets; i++) {
		free(config->nets[i].name);
		free(config->nets[i].tap);
	}
	free(config->name);
	free(config->kernel);
	free(config->initrd);
	free(config->cmdline);
	free(opts->control);
	free(opts->journal);
	free(opts->console_log);
	memset(opts, 0, sizeof(*opts));
}
