// SPDX-License-Identifier: Apache-2.0
/* Places for connections that have not shown who they are; see gate.h. */
#include "agent/gate.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/util.h"

void gw_gate_init(struct gw_gate *g)
{
	memset(g, 0, sizeof(*g));
	pthread_mutex_init(&g->lock, NULL);
}

void gw_gate_release(struct gw_gate *g)
{
	pthread_mutex_destroy(&g->lock);
}

static int address_of(int fd, uint8_t address[16])
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);

	memset(address, 0, 16);
	if (getpeername(fd, (struct sockaddr *)&ss, &len) < 0)
		return -errno;
	if (ss.ss_family == AF_INET6) {
		memcpy(address, &((struct sockaddr_in6 *)&ss)->sin6_addr, 16);
	} else {
		address[10] = address[11] = 0xff;
		memcpy(address + 12, &((struct sockaddr_in *)&ss)->sin_addr, 4);
	}
	return 0;
}

int gw_gate_enter(struct gw_gate *g, int fd)
{
	unsigned same = 0;
	uint8_t address[16];
	int place = -1, r = address_of(fd, address);

	if (r < 0)
		return r;
	pthread_mutex_lock(&g->lock);
	for (int i = 0; i < GW_GATE_SIZE; i++) {
		if (!g->place[i].used)
			place = place < 0 ? i : place;
		else
			same += !memcmp(g->place[i].address, address, 16);
	}
	if (place >= 0 && same < GW_GATE_PER_ADDRESS) {
		g->place[place].used = true;
		memcpy(g->place[place].address, address, 16);
	} else {
		place = -EBUSY;
	}
	pthread_mutex_unlock(&g->lock);
	return place;
}

void gw_gate_leave(struct gw_gate *g, int place)
{
	pthread_mutex_lock(&g->lock);
	g->place[place].used = false;
	pthread_mutex_unlock(&g->lock);
}
