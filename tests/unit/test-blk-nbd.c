// SPDX-License-Identifier: Apache-2.0
/* virtio-blk on an NBD server (nbdkit) that slows down, dies and comes back. Skipped, loudly, where there is no nbdkit. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"
#include "tests/unit/virtio-guest.h"
#include "vmm/blk.h"
#include "vmm/virtio-pci.h"
#include "vmm/vm.h"

#define SLOT 11
#define SIZE (8u << 20)
#define HEADER(i) (0x200000ull + (i) * 64)
#define STATUS(i) (0x201000ull + (i))
#define DATA(i) (0x210000ull + (i) * 0x20000)

struct fixture {
	struct fake_host *fake;
	char dir[64], file[80], socket[80], uri[160];
	pid_t server;
	struct gw_blk *blk;
	struct gw_device dev;
	struct guest guest;
};

static bool have_nbdkit(void)
{
	return access("/usr/bin/nbdkit", X_OK) == 0 || access("/usr/sbin/nbdkit", X_OK) == 0;
}

static bool socket_answers(void *arg)
{
	int fd;

	if (gw_unix_connect(arg, &fd, NULL) < 0)
		return false;
	close(fd);
	return true;
}

/* `delay` is a setting of nbdkit's delay filter, or NULL. */
static void start_server(struct fixture *f, const char *delay)
{
	pid_t parent = getpid();

	unlink(f->socket);
	f->server = fork();
	assert_true(f->server >= 0);
	if (f->server == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		if (delay)
			execlp("nbdkit", "nbdkit", "-f", "-U", f->socket, "--filter=delay", "file", f->file, delay, NULL);
		else
			execlp("nbdkit", "nbdkit", "-f", "-U", f->socket, "file", f->file, NULL);
		_exit(127);
	}
	assert_true(fake_wait(socket_answers, f->socket));
}

static void stop_server(struct fixture *f)
{
	if (f->server > 0) {
		kill(f->server, SIGKILL);
		waitpid(f->server, NULL, 0);
	}
	f->server = 0;
	unlink(f->socket);
}

static void open_disk(struct fixture *f, bool incoming)
{
	const struct gw_disk_config config = { .name = "vda", .path = f->uri };
	struct gw_error err = GW_ERROR_INIT;

	if (gw_blk_new(&config, incoming, &f->fake->host, &f->blk, &err) < 0)
		fail_msg("%s", err.msg);
	assert_int_equal(gw_virtio_pci_attach(gw_blk_virtio(f->blk), f->fake->pci, SLOT, NULL), 0);
	f->dev = gw_virtio_device(gw_blk_virtio(f->blk));
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int fd;

	assert_non_null(f);
	*state = f;
	if (!have_nbdkit())
		return 0;
	memcpy(f->dir, "/tmp/gw-test-nbd-XXXXXX", 24);
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->file, sizeof(f->file), "%s/disk", f->dir);
	snprintf(f->socket, sizeof(f->socket), "%s/sock", f->dir);
	snprintf(f->uri, sizeof(f->uri), "nbd+unix:///?socket=%s", f->socket);
	fd = open(f->file, O_RDWR | O_CREAT | O_EXCL, 0600);
	assert_true(fd >= 0 && ftruncate(fd, SIZE) == 0);
	close(fd);
	start_server(f, NULL);
	f->fake = fake_host_new();
	open_disk(f, false);
	f->dev.ops->resume(f->dev.self);
	assert_true(guest_start(&f->guest, f->fake, SLOT, UINT64_MAX));
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	if (f->fake) {
		f->dev.ops->free(f->dev.self);
		stop_server(f);
		fake_host_free(f->fake);
		unlink(f->file);
		rmdir(f->dir);
	}
	free(f);
	return 0;
}

static void need_nbdkit(struct fixture *f)
{
	if (!f->fake) {
		print_message("nbdkit is not installed: NBD is not tested\n");
		skip();
	}
}

/* Makes request `i` of `len` bytes in buffers of `piece` bytes available. */
static void add(struct guest *g, unsigned i, uint32_t type, uint64_t sector, uint32_t len, uint32_t piece)
{
	const struct virtio_blk_outhdr hdr = { .type = type, .sector = sector };
	struct guest_buf bufs[GUEST_QUEUE_SIZE] = { { HEADER(i), 16, false } };
	unsigned n = 1;

	memcpy(guest_ptr(g, HEADER(i), 16), &hdr, 16);
	*(uint8_t *)guest_ptr(g, STATUS(i), 1) = 0xaa;
	for (uint32_t at = 0; at < len; at += piece)
		bufs[n++] = (struct guest_buf){ DATA(i) + at, GW_MIN(piece, len - at), type == VIRTIO_BLK_T_IN };
	bufs[n++] = (struct guest_buf){ STATUS(i), 1, true };
	guest_add(g, 0, bufs, n);
}

static uint8_t finish(struct guest *g, unsigned i)
{
	guest_kick(g, 0);
	assert_true(guest_used(g, 0, NULL, NULL));
	return *(uint8_t *)guest_ptr(g, STATUS(i), 1);
}

static void fill(struct guest *g, unsigned i, uint32_t len, unsigned seed)
{
	uint8_t *p = guest_ptr(g, DATA(i), len);

	for (uint32_t j = 0; j < len; j++)
		p[j] = (uint8_t)(j * 7 + j / 512 + seed);
}

static void check(struct guest *g, unsigned i, uint32_t len, unsigned seed)
{
	const uint8_t *p = guest_ptr(g, DATA(i), len);

	for (uint32_t j = 0; j < len; j++) {
		if (p[j] != (uint8_t)(j * 7 + j / 512 + seed))
			fail_msg("byte %u differs", j);
	}
}

static void data_goes_to_the_server_and_back(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;

	need_nbdkit(f);
	fill(g, 0, 65536, 1);
	add(g, 0, VIRTIO_BLK_T_OUT, 7, 65536, 4096); /* in pieces: by copy */
	assert_int_equal(finish(g, 0), VIRTIO_BLK_S_OK);
	add(g, 1, VIRTIO_BLK_T_FLUSH, 0, 0, 1);
	assert_int_equal(finish(g, 1), VIRTIO_BLK_S_OK);
	add(g, 1, VIRTIO_BLK_T_IN, 7, 65536, 65536); /* as one */
	assert_int_equal(finish(g, 1), VIRTIO_BLK_S_OK);
	check(g, 1, 65536, 1);
	add(g, 2, VIRTIO_BLK_T_IN, 7, 65536, 2560);
	assert_int_equal(finish(g, 2), VIRTIO_BLK_S_OK);
	check(g, 2, 65536, 1);
	add(g, 2, VIRTIO_BLK_T_IN, SIZE / 512, 512, 512);
	assert_int_equal(finish(g, 2), VIRTIO_BLK_S_IOERR);
}

static void ranges_are_zeroed(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	const struct virtio_blk_discard_write_zeroes seg = { .sector = 8, .num_sectors = 8 };
	uint8_t *data;

	need_nbdkit(f);
	fill(g, 0, 8192, 3);
	add(g, 0, VIRTIO_BLK_T_OUT, 0, 8192, 8192);
	assert_int_equal(finish(g, 0), VIRTIO_BLK_S_OK);
	memcpy(guest_ptr(g, DATA(1), 16), &seg, 16);
	add(g, 1, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, 16);
	assert_int_equal(finish(g, 1), VIRTIO_BLK_S_OK);
	add(g, 2, VIRTIO_BLK_T_IN, 0, 8192, 8192);
	assert_int_equal(finish(g, 2), VIRTIO_BLK_S_OK);
	data = guest_ptr(g, DATA(2), 8192);
	for (unsigned i = 4096; i < 8192; i++)
		assert_int_equal(data[i], 0);
	check(g, 2, 4096, 3);
}

/* Requests at a server that is killed are answered by the next one. */
static void a_lost_server_is_waited_for(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;

	need_nbdkit(f);
	stop_server(f);
	start_server(f, "wdelay=2");
	/* The old connection is found dead, the new server is slow: it dies with the requests. */
	for (unsigned i = 0; i < 3; i++) {
		fill(g, i, 65536, 10 + i);
		add(g, i, VIRTIO_BLK_T_OUT, 256ull * i, 65536, 16384);
	}
	guest_kick(g, 0);
	add(g, 4, VIRTIO_BLK_T_IN, 4096, 512, 512);
	guest_kick(g, 0);
	assert_true(guest_used(g, 0, NULL, NULL)); /* the read: the writes are at the server by now */
	assert_int_equal(*(uint8_t *)guest_ptr(g, STATUS(4), 1), VIRTIO_BLK_S_OK);
	stop_server(f);
	assert_false(guest_used_now(g, 0, NULL, NULL));
	start_server(f, NULL);
	for (unsigned i = 0; i < 3; i++)
		assert_true(guest_used(g, 0, NULL, NULL));
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(*(uint8_t *)guest_ptr(g, STATUS(i), 1), VIRTIO_BLK_S_OK);
		add(g, 4, VIRTIO_BLK_T_IN, 256ull * i, 65536, 65536);
		assert_int_equal(finish(g, 4), VIRTIO_BLK_S_OK);
		check(g, 4, 65536, 10 + i);
	}
}

/* A VM stopped while its server is away takes its requests along. */
static void requests_are_parked_over_a_move(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	struct gw_state_writer *w = NULL;
	struct gw_state_reader *r = NULL;
	struct gw_buf buf = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;
	uint64_t start;

	need_nbdkit(f);
	fill(g, 0, 65536, 99);
	stop_server(f);
	add(g, 0, VIRTIO_BLK_T_OUT, 0, 65536, 65536);
	add(g, 1, VIRTIO_BLK_T_OUT, 128, 65536, 65536);
	guest_kick(g, 0);
	start = gw_now_ns();
	f->dev.ops->quiesce(f->dev.self);
	assert_in_range(gw_now_ns() - start, 0, 20 * GW_NS_PER_SEC);
	assert_false(guest_used_now(g, 0, NULL, NULL));
	start_server(f, NULL);
	assert_int_equal(gw_state_writer_new(&w), 0);
	assert_int_equal(f->dev.ops->save(f->dev.self, w, &err), 0);
	assert_int_equal(gw_state_finish(w, &buf), 0);
	gw_state_writer_free(w);
	f->dev.ops->free(f->dev.self);
	open_disk(f, true);
	assert_int_equal(gw_state_reader_new(buf.data, buf.len, &r, &err), 0);
	if (f->dev.ops->load(f->dev.self, r, &err) < 0)
		fail_msg("%s", err.msg);
	gw_state_reader_free(r);
	gw_buf_release(&buf);
	f->dev.ops->resume(f->dev.self);
	assert_true(guest_used(g, 0, NULL, NULL));
	assert_true(guest_used(g, 0, NULL, NULL));
	add(g, 2, VIRTIO_BLK_T_IN, 0, 65536, 65536);
	assert_int_equal(finish(g, 2), VIRTIO_BLK_S_OK);
	check(g, 2, 65536, 99);
}

static void quiesce_is_quick_when_idle(void **state)
{
	struct fixture *f = *state;
	uint64_t start, best = UINT64_MAX;

	need_nbdkit(f);
	/* Nothing in it waits for time to pass; on a busy machine one that was not interrupted shows that. */
	for (int i = 0; i < 2000 && best > GW_NS_PER_MS; i++) {
		start = gw_now_ns();
		f->dev.ops->quiesce(f->dev.self);
		best = GW_MIN(best, gw_now_ns() - start);
		f->dev.ops->resume(f->dev.self);
	}
	assert_in_range(best, 0, GW_NS_PER_MS);
}

/*
 * A server's half of a handshake (NBD protocol, "Fixed newstyle negotiation"): greeting; structured replies unsupported; an export of SIZE
 * bytes for NBD_OPT_GO. It is sent before the client says a word, as if the client had been slow.
 */
#define REPLY "\x00\x03\xe8\x89\x04\x55\x65\xa9"
static const char handshake[] = "NBDMAGICIHAVEOPT\x00\x03"
	REPLY "\x00\x00\x00\x08" "\x80\x00\x00\x01" "\x00\x00\x00\x00"
	REPLY "\x00\x00\x00\x07" "\x00\x00\x00\x03" "\x00\x00\x00\x0c" "\x00\x00" "\x00\x00\x00\x00\x00\x80\x00\x00" "\x00\x05"
	REPLY "\x00\x00\x00\x07" "\x00\x00\x00\x01" "\x00\x00\x00\x00";

static atomic_int whole_answer; /* bytes that a new connection has before its client goes on */

/* libnbd's as well. */
int connect(int fd, const struct sockaddr *address, socklen_t len)
{
	int r = (int)syscall(SYS_connect, fd, address, len);
	int error = errno, there = 0;

	while (there < atomic_load(&whole_answer))
		assert_int_equal(ioctl(fd, FIONREAD, &there), 0);
	errno = error; /* EINPROGRESS most likely */
	return r;
}

static void *serve_handshake(void *arg)
{
	int *listener = arg, fd = accept(*listener, NULL, NULL);
	char byte;

	assert_int_equal(write(fd, handshake, sizeof(handshake) - 1), sizeof(handshake) - 1);
	while (read(fd, &byte, 1) > 0)
		;
	close(fd);
	return NULL;
}

/* When the server's answers are there as soon as the client asks, the connection is made before anything is waited for. */
static void a_quick_server_is_not_waited_for(void **state)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(address);
	char uri[40];
	const struct gw_disk_config config = { .name = "vda", .path = uri };
	struct fake_host *fake = fake_host_new();
	struct gw_error err = GW_ERROR_INIT;
	struct gw_blk *blk;
	struct gw_device dev;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint64_t start;
	pthread_t server;

	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &len), 0);
	snprintf(uri, sizeof(uri), "nbd://127.0.0.1:%u", ntohs(address.sin_port));
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(pthread_create(&server, NULL, serve_handshake, &listener), 0);
	atomic_store(&whole_answer, sizeof(handshake) - 1);
	start = gw_now_ns();
	if (gw_blk_new(&config, false, &fake->host, &blk, &err) < 0)
		fail_msg("%s", err.msg);
	assert_in_range(gw_now_ns() - start, 0, 5 * GW_NS_PER_SEC); /* half the time that a silent server is given */
	atomic_store(&whole_answer, 0);
	dev = gw_virtio_device(gw_blk_virtio(blk));
	dev.ops->free(dev.self);
	pthread_join(server, NULL);
	close(listener);
	fake_host_free(fake);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(data_goes_to_the_server_and_back),
		T(ranges_are_zeroed),
		T(a_lost_server_is_waited_for),
		T(requests_are_parked_over_a_move),
		T(quiesce_is_quick_when_idle),
		cmocka_unit_test(a_quick_server_is_not_waited_for),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
