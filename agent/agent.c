// SPDX-License-Identifier: Apache-2.0
/* The agent as a whole: folders, TLS, background threads, this host's figures; see agent.h. */
#include "agent/agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>

#include "agent/bootfile.h"
#include "agent/chan.h"
#include "agent/guest.h"
#include "agent/repositories.h"
#include "agent/share.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"

#define MAP_COUNT "/proc/sys/vm/max_map_count"

static int make_folders(const struct gw_conf *conf, struct gw_error *err)
{
	static const char *const below[] = { "", "/vms", "/moves", "/resumed", "/boot" };
	gw_autofree char *run = NULL;
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(below) && r == 0; i++) {
		gw_autofree char *path = NULL;

		if (asprintf(&path, "%s%s", conf->state, below[i]) < 0)
			return gw_error_set(err, ENOMEM, "out of memory");
		r = gw_mkdir_p(path, 0700);
		if (r < 0)
			return gw_error_errno(err, r, "cannot make %s", path);
	}
	if (asprintf(&run, "%s/vms", conf->run) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_mkdir_p(run, 0755);
	return r < 0 ? gw_error_errno(err, r, "cannot make %s", run) : 0;
}

/* Two agents on one state folder would each start what the other thinks stopped. */
static int take_state(struct gw_agent *a, struct gw_error *err)
{
	gw_autofree char *path = NULL;

	if (asprintf(&path, "%s/agent.lock", a->conf->state) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	a->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (a->lock_fd < 0)
		return gw_error_errno(err, errno, "cannot open %s", path);
	if (flock(a->lock_fd, LOCK_EX | LOCK_NB) < 0)
		return gw_error_set(err, EBUSY, "another godwitd uses %s", a->conf->state);
	return 0;
}

static void read_boot_id(char id[40])
{
	gw_autofree char *text = NULL;
	size_t len;

	id[0] = '\0';
	if (gw_read_file("/proc/sys/kernel/random/boot_id", 64, &text, &len, NULL) == 0)
		snprintf(id, 40, "%.*s", (int)strcspn(text, "\n"), text);
}

/* The name in our certificate is what peers check; better to hear it now than from them. */
static int check_own_name(struct gw_agent *a, struct gw_error *err)
{
	X509 *cert = SSL_CTX_get0_certificate(a->tls_server);
	enum gw_role role;
	char name[64];
	int r = gw_pki_identify(cert, &role, name, err);

	if (r < 0)
		return gw_error_wrap(err, "%s", a->conf->tls_cert);
	if (role != GW_ROLE_HOST)
		return gw_error_set(err, EINVAL, "%s is not a host's certificate", a->conf->tls_cert);
	if (strcmp(name, a->conf->name) != 0)
		return gw_error_set(err, EINVAL, "%s is the certificate of '%s', and this host is named '%s'", a->conf->tls_cert, name,
				    a->conf->name);
	return 0;
}

int gw_agent_init(struct gw_agent *a, const struct gw_conf *conf, struct gw_error *err)
{
	int r;

	memset(a, 0, sizeof(*a));
	a->conf = conf;
	pthread_mutex_init(&a->lock, NULL);
	pthread_mutex_init(&a->arrivals_lock, NULL);
	pthread_mutex_init(&a->digests_lock, NULL);
	gw_memory_init(&a->memory);
	read_boot_id(a->boot_id);
	a->lock_fd = -1;
	a->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (a->stop_fd < 0)
		return gw_error_errno(err, errno, "cannot make an eventfd");
	r = make_folders(conf, err) ?: take_state(a, err);
	r = r ?: gw_events_open(conf->state, conf->name, &a->events, err);
	r = r ?: gw_sharing_new(conf, MAP_COUNT, a->events, &a->sharing, err);
	if (r == 0 && gw_conf_has_tls(conf)) {
		r = gw_tls_new(conf->tls_ca, conf->tls_cert, conf->tls_key, true, &a->tls_server, err);
		r = r ?: gw_tls_new(conf->tls_ca, conf->tls_cert, conf->tls_key, false, &a->tls_client, err);
		r = r ?: check_own_name(a, err);
		if (r == 0 && conf->repositories)
			r = gw_repositories_new(a, &a->repositories, err);
	}
	return r;
}

void gw_agent_release(struct gw_agent *a)
{
	gw_guests_free(a);
	gw_sharing_free(a->sharing);
	gw_repositories_free(a->repositories);
	gw_memory_release(&a->memory);
	gw_bootfile_cache_free(a);
	SSL_CTX_free(a->tls_server);
	SSL_CTX_free(a->tls_client);
	gw_events_close(a->events);
	gw_closep(&a->stop_fd);
	gw_closep(&a->lock_fd);
	pthread_mutex_destroy(&a->lock);
	pthread_mutex_destroy(&a->arrivals_lock);
	pthread_mutex_destroy(&a->digests_lock);
}

int gw_agent_stop(struct gw_agent *a, int ms)
{
	uint64_t deadline = gw_now_ns() + (uint64_t)ms * GW_NS_PER_MS;
	uint64_t one = 1;

	a->stopping = true;
	if (write(a->stop_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		return -errno;
	if (a->events)
		gw_events_stop(a->events);
	while (a->threads > 0) {
		if (gw_now_ns() >= deadline)
			return -ETIMEDOUT;
		usleep(2000);
	}
	return 0;
}

struct thread_start {
	struct gw_agent *agent;
	void (*fn)(void *);
	void *arg;
};

static void *run_thread(void *arg)
{
	struct thread_start s = *(struct thread_start *)arg;

	free(arg);
	s.fn(s.arg);
	s.agent->threads--;
	return NULL;
}

int gw_agent_thread(struct gw_agent *a, void (*fn)(void *), void *arg, struct gw_error *err)
{
	struct thread_start *s = malloc(sizeof(*s));
	pthread_attr_t attr;
	pthread_t t;
	int r;

	if (!s)
		return gw_error_set(err, ENOMEM, "out of memory");
	*s = (struct thread_start){ a, fn, arg };
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	a->threads++;
	r = pthread_create(&t, &attr, run_thread, s);
	pthread_attr_destroy(&attr);
	if (r) {
		a->threads--;
		free(s);
		return gw_error_errno(err, r, "cannot start a thread");
	}
	return 0;
}

bool gw_agent_sleep(struct gw_agent *a, uint64_t deadline_ns)
{
	return gw_wait_fd(a->stop_fd, POLLIN, deadline_ns) == 0 || a->stopping;
}

int gw_agent_peer_address(const struct gw_agent *a, const char *name, char address[280], char want_name[256],
			  struct gw_error *err)
{
	for (unsigned i = 0; i < a->conf->npeers; i++) {
		if (strcmp(a->conf->peers[i].name, name) != 0)
			continue;
		snprintf(address, 280, "%s", a->conf->peers[i].address);
		snprintf(want_name, 256, "%s", name);
		return 0;
	}
	return gw_split_host(name, address, want_name, err);
}
