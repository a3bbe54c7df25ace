// SPDX-License-Identifier: Apache-2.0
/* A VM's memory and its sharer; see share-vm.h. */
#include "cmocka-all.h"

#include "share-vm.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksmd-process.h"
#include "lib/clock.h"
#include "lib/util.h"

const struct gw_sharer_config share_vm_quick = { .cpu_percent = 100, .interval_ns = 20 * GW_NS_PER_MS };

int share_vm_try(uint64_t pages, const struct gw_sharer_config *config, struct share_vm *ret, struct gw_error *err)
{
	int r = gw_ram_new(pages << GW_PAGE_SHIFT, 1ull << 32, 1ull << 32, &ret->ram, err);

	r = r ?: gw_sharer_new(ret->ram, config, &ret->sharer, err);
	if (r < 0)
		gw_ram_free(ret->ram);
	return r;
}

struct share_vm share_vm_new(uint64_t pages, const struct gw_sharer_config *config)
{
	struct gw_error err = GW_ERROR_INIT;
	struct share_vm vm = { 0 };
	int r = share_vm_try(pages, config, &vm, &err);

	if (r == -EPERM || r == -ENOSYS) {
		print_message("skipped: %s\n", gw_error_text(&err));
		skip();
	}
	assert_int_equal(r, 0);
	return vm;
}

void share_vm_free(struct share_vm *vm)
{
	gw_sharer_free(vm->sharer);
	gw_ram_free(vm->ram);
}

/* A guest writes without asking a sanitizer what others do with the page at the time. */
#define GUEST __attribute__((no_sanitize("thread"), noinline))

GUEST void share_vm_fill(struct share_vm *vm, uint64_t page, unsigned count, uint64_t seed)
{
	for (unsigned i = 0; i < count; i++) {
		uint64_t *words = gw_ram_page(vm->ram, page + i);

		for (unsigned k = 0; k < 512; k++)
			words[k] = (seed + i) * 0x9e3779b97f4a7c15ull + k;
	}
}

GUEST bool share_vm_holds(struct share_vm *vm, uint64_t page, unsigned count, uint64_t seed)
{
	for (unsigned i = 0; i < count; i++) {
		const uint64_t *words = gw_ram_page(vm->ram, page + i);

		for (unsigned k = 0; k < 512; k++) {
			if (words[k] != (seed + i) * 0x9e3779b97f4a7c15ull + k)
				return false;
		}
	}
	return true;
}

struct gw_sharer_stats share_vm_stats(struct share_vm *vm)
{
	struct gw_sharer_stats s;

	gw_sharer_stats(vm->sharer, &s);
	return s;
}

/* ---- in a process of its own ---- */

enum { FILL, HOLDS, STATS, ATTACH, END };

struct request {
	int op;
	unsigned count;
	uint64_t page, seed;
};

struct reply {
	bool holds;
	struct gw_sharer_stats stats;
};

static int serve(int fd, int sock, uint64_t pages, const struct gw_sharer_config *config)
{
	struct gw_error err = GW_ERROR_INIT;
	struct share_vm vm = { 0 };
	struct request req;

	if (share_vm_try(pages, config, &vm, &err) < 0)
		return 1;
	while (recv(fd, &req, sizeof(req), 0) == sizeof(req) && req.op != END) {
		struct reply reply = { 0 };

		if (req.op == FILL)
			share_vm_fill(&vm, req.page, req.count, req.seed);
		else if (req.op == ATTACH)
			gw_sharer_attach(vm.sharer, sock);
		else if (req.op == HOLDS)
			reply.holds = share_vm_holds(&vm, req.page, req.count, req.seed);
		else
			reply.stats = share_vm_stats(&vm);
		if (send(fd, &reply, sizeof(reply), MSG_NOSIGNAL) != sizeof(reply))
			break;
	}
	share_vm_free(&vm);
	return 0;
}

struct share_vm_process share_vm_start(int sock, uint64_t pages, const struct gw_sharer_config *config)
{
	return share_vm_start_after(sock, pages, config, NULL);
}

struct share_vm_process share_vm_start_after(int sock, uint64_t pages, const struct gw_sharer_config *config, void (*before)(void))
{
	struct share_vm_process p;
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	p.pid = fork();
	assert_true(p.pid >= 0);
	if (p.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(pair[0]);
		/* The daemon ends when its agent, which is the test, lets go of it. */
		gw_closep(&ksmd.control);
		if (before)
			before();
		_exit(serve(pair[1], sock, pages, config));
	}
	close(pair[1]);
	close(sock);
	p.fd = pair[0];
	return p;
}

void share_vm_end(struct share_vm_process *p)
{
	struct request req = { .op = END };
	int status = -1;

	/* To close it is not enough: those that were started later have it too. */
	assert_int_equal(send(p->fd, &req, sizeof(req), MSG_NOSIGNAL), sizeof(req));
	gw_closep(&p->fd);
	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	assert_int_equal(status, 0);
	p->pid = -1;
}

static struct reply ask(struct share_vm_process *p, const struct request *req)
{
	struct reply reply = { 0 };

	assert_int_equal(send(p->fd, req, sizeof(*req), MSG_NOSIGNAL), sizeof(*req));
	assert_int_equal(recv(p->fd, &reply, sizeof(reply), 0), sizeof(reply));
	return reply;
}

void share_vm_tell_fill(struct share_vm_process *p, uint64_t page, unsigned count, uint64_t seed)
{
	(void)ask(p, &(struct request){ .op = FILL, .page = page, .count = count, .seed = seed });
}

void share_vm_tell_attach(struct share_vm_process *p)
{
	(void)ask(p, &(struct request){ .op = ATTACH });
}

bool share_vm_ask_holds(struct share_vm_process *p, uint64_t page, unsigned count, uint64_t seed)
{
	return ask(p, &(struct request){ .op = HOLDS, .page = page, .count = count, .seed = seed }).holds;
}

struct gw_sharer_stats share_vm_ask_stats(struct share_vm_process *p)
{
	return ask(p, &(struct request){ .op = STATS }).stats;
}

int share_vm_with_daemon(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct share_vm vm;
	int r = share_vm_try(16, &share_vm_quick, &vm, &err);

	if (r == 0) {
		share_vm_free(&vm);
		ksmd_start(NULL);
	} else {
		print_message("skipped: %s\n", gw_error_text(&err));
	}
	*state = r == 0 ? &ksmd : NULL;
	return 0;
}

int share_vm_without_daemon(void **state)
{
	if (*state)
		ksmd_stop();
	return 0;
}
