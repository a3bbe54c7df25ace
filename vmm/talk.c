// SPDX-License-Identifier: Apache-2.0
/* The conversations of a moving VM; see talk.h. */
#include "vmm/talk.h"

#include <arpa/inet.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <string.h>
#include <xxhash.h>

#include "lib/clock.h"
#include "lib/util.h"

#define OLDEST_NS (2 * GW_NS_PER_SEC)
/* It answers when it sends at least one packet for so many that it is sent: one that is overloaded by its move may lose most of them. */
#define HEARD_PER_SAID 64
/* Answers that are taken for granted where some were given before. */
#define CREDIT ((uint64_t)32)
/* So many packets without an answer are more than one question and its repetitions by TCP. */
#define INSISTS 16
/* One packet or two may be the answers to what the VM asked; TCP has its data acknowledged in any case. */
#define ASKS 4
/* An idle processor's guest answers within a tick of its clock (HZ=250). */
#define OVERDUE_NS (4 * GW_NS_PER_MS)

/* A guest that has answered once may fall silent again over what else it finds to do. */
#define SETTLE_NS (20 * GW_NS_PER_MS)
#define NOBODY_NS (100 * GW_NS_PER_MS)
#define ASKED_NS (400 * GW_NS_PER_MS)

struct flow {
	uint64_t key; /* 0: free */
	uint64_t heard, said, replied; /* replied: said with data, by TCP */
	uint64_t begun_ns, last_ns; /* packets; 0: none yet */
	uint64_t first_said_ns; /* an answer; 0: none yet */
	uint64_t since_ns;      /* the oldest packet without an answer, 0: none */
	unsigned waiting;       /* packets since then */
	bool tcp;
};

_Atomic(bool) gw_talk_noted;

/* All under lock, which is contended a few times a second at the most. */
static struct {
	pthread_mutex_t lock;
	uint64_t longest_ns;
	struct flow flows[GW_TALK_FLOWS];
} talk = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* One end of a conversation; IPv4 in the first four bytes. */
struct end {
	uint8_t addr[16];
	uint16_t port;
};

struct headers {
	struct end from, to;
	uint16_t type;
	uint8_t proto;
	bool bare_ack; /* TCP that carries nothing and asks for nothing */
};

static void read_transport(const uint8_t *p, size_t len, size_t payload, struct headers *h)
{
	bool tcp = h->proto == IPPROTO_TCP;
	uint8_t flags;

	if ((!tcp && h->proto != IPPROTO_UDP) || len < 4)
		return;
	memcpy(&h->from.port, p, 2);
	memcpy(&h->to.port, p + 2, 2);
	if (!tcp || len < sizeof(struct tcphdr))
		return;
	flags = p[13]; /* RFC 9293 §3.1 */
	h->bare_ack = payload == (p[12] >> 4) * 4u && !(flags & (TH_SYN | TH_FIN | TH_RST));
}

/* RFC 791 §3.1 */
static void read_ipv4(const uint8_t *p, size_t len, struct headers *h)
{
	size_t header = (p[0] & 15) * 4u, total = (size_t)p[2] << 8 | p[3];
	bool first_fragment = !((p[6] & 0x1f) | p[7]);

	h->proto = p[9];
	memcpy(h->from.addr, p + 12, 4);
	memcpy(h->to.addr, p + 16, 4);
	if (first_fragment && header >= 20 && header < len && header <= total)
		read_transport(p + header, len - header, total - header, h);
}

/* RFC 8200 §3; extension headers end it. */
static void read_ipv6(const uint8_t *p, size_t len, struct headers *h)
{
	h->proto = p[6];
	memcpy(h->from.addr, p + 8, 16);
	memcpy(h->to.addr, p + 24, 16);
	read_transport(p + 40, len - 40, (size_t)p[4] << 8 | p[5], h);
}

/* False for what is no part of a conversation. */
static bool read_headers(const uint8_t *frame, size_t len, struct headers *h)
{
	if (len < ETH_HLEN || (frame[0] & 1))
		return false;
	memset(h, 0, sizeof(*h));
	h->type = (uint16_t)(frame[12] << 8 | frame[13]);
	if (h->type == ETHERTYPE_IP && len >= ETH_HLEN + 20)
		read_ipv4(frame + ETH_HLEN, len - ETH_HLEN, h);
	else if (h->type == ETHERTYPE_IPV6 && len >= ETH_HLEN + 40)
		read_ipv6(frame + ETH_HLEN, len - ETH_HLEN, h);
	else
		return false;
	return true;
}

/* The same for both directions, never 0. Two bits are free: in a conversation's name they tell how it stands. */
#define KEY_USED 1ull
#define KEY_REPLIES 2ull
#define KEY_AWAITED 4ull
#define KEY_STANDING (KEY_REPLIES | KEY_AWAITED)
static uint64_t key_of(const struct headers *h)
{
	bool swap = memcmp(&h->from, &h->to, sizeof(h->from)) > 0;
	struct end ends[2] = { swap ? h->to : h->from, swap ? h->from : h->to };

	return (XXH3_64bits_withSeed(ends, sizeof(ends), (uint64_t)h->type << 8 | h->proto) & ~KEY_STANDING) | KEY_USED;
}

/* The conversation of that key, in place of the one that was silent for longest when it is new. */
static struct flow *flow_of(uint64_t key)
{
	struct flow *oldest = talk.flows;

	for (struct flow *f = talk.flows; f < talk.flows + GW_TALK_FLOWS; f++) {
		if (f->key == key)
			return f;
		if (f->last_ns < oldest->last_ns)
			oldest = f;
	}
	*oldest = (struct flow){ .key = key };
	return oldest;
}

static bool answers(const struct flow *f)
{
	return f->said * HEARD_PER_SAID >= f->heard;
}

static bool awaited(const struct flow *f)
{
	return f->waiting >= (f->tcp ? 1 : ASKS) && answers(f);
}

static bool insists(const struct flow *f)
{
	return awaited(f) && f->waiting >= INSISTS;
}

/* The VM answers by data: that its TCP acknowledges what it is sent is no answer. Not so where it is mostly sent some. */
static bool replies(const struct flow *f)
{
	return f->replied * 4 >= f->heard;
}

static void hear(struct flow *f, uint64_t now)
{
	f->heard++;
	f->waiting++;
	f->since_ns = f->since_ns ?: now;
}

static void say(struct flow *f, const struct headers *h, uint64_t now)
{
	f->said++;
	f->replied += f->tcp && !h->bare_ack;
	if (f->since_ns == 0 || (h->bare_ack && replies(f)))
		return;
	/* Asked often, and answered in the end: few answers before mean only that the VM was late from the beginning. */
	if (f->waiting >= INSISTS && GW_MAX(f->said, CREDIT) * HEARD_PER_SAID >= f->heard)
		talk.longest_ns = GW_MAX(talk.longest_ns, now - f->since_ns);
	f->first_said_ns = f->first_said_ns ?: now;
	f->since_ns = 0;
	f->waiting = 0;
}

void gw_talk_begin(const uint64_t *answered, size_t n)
{
	uint64_t now = gw_now_ns();

	pthread_mutex_lock(&talk.lock);
	memset(talk.flows, 0, sizeof(talk.flows));
	for (size_t i = 0; i < GW_MIN(n, (size_t)GW_TALK_FLOWS); i++) {
		struct flow *f = &talk.flows[i];

		*f = (struct flow){ .key = answered[i] & ~KEY_STANDING, .said = CREDIT, .replied = answered[i] & KEY_REPLIES ? CREDIT : 0 };
		/* Its question came along in the VM's memory. */
		if (answered[i] & KEY_AWAITED) {
			f->heard = f->waiting = ASKS;
			f->begun_ns = f->since_ns = now;
		}
	}
	talk.longest_ns = 0;
	pthread_mutex_unlock(&talk.lock);
	atomic_store(&gw_talk_noted, true);
}

void gw_talk_end(void)
{
	atomic_store(&gw_talk_noted, false);
}

void gw_talk_packet(const void *frame, size_t len, bool said)
{
	uint64_t now = gw_now_ns();
	struct headers h;
	struct flow *f;

	if (!atomic_load(&gw_talk_noted) || !read_headers(frame, len, &h))
		return;
	pthread_mutex_lock(&talk.lock);
	f = flow_of(key_of(&h));
	f->begun_ns = f->begun_ns ?: now;
	f->last_ns = now;
	f->tcp = h.proto == IPPROTO_TCP;
	if (said)
		say(f, &h, now);
	else if (!h.bare_ack)
		hear(f, now);
	pthread_mutex_unlock(&talk.lock);
}

bool gw_talk_repeats(const void *frame, size_t len)
{
	struct headers h;

	return read_headers(frame, len, &h) && h.proto == IPPROTO_TCP;
}

/* With the lock held: the oldest question that somebody waits for the answer of, 0: none. */
static uint64_t oldest_unanswered(void)
{
	uint64_t oldest = 0;

	for (const struct flow *f = talk.flows; f < talk.flows + GW_TALK_FLOWS; f++) {
		if (awaited(f) && (oldest == 0 || f->since_ns < oldest))
			oldest = f->since_ns;
	}
	return oldest;
}

uint64_t gw_talk_unanswered(void)
{
	uint64_t since;

	pthread_mutex_lock(&talk.lock);
	since = oldest_unanswered();
	pthread_mutex_unlock(&talk.lock);
	return since ? GW_MAX(since, gw_now_ns() - OLDEST_NS) : 0;
}

bool gw_talk_overdue(void)
{
	uint64_t since;

	if (!atomic_load_explicit(&gw_talk_noted, memory_order_relaxed))
		return false;
	since = gw_talk_unanswered();
	return since && gw_now_ns() - since > OVERDUE_NS;
}

size_t gw_talk_answered(uint64_t keys[GW_TALK_FLOWS])
{
	size_t n = 0;

	pthread_mutex_lock(&talk.lock);
	for (const struct flow *f = talk.flows; f < talk.flows + GW_TALK_FLOWS; f++) {
		if (f->first_said_ns && answers(f))
			keys[n++] = f->key | (replies(f) ? KEY_REPLIES : 0) | (awaited(f) ? KEY_AWAITED : 0);
	}
	pthread_mutex_unlock(&talk.lock);
	return n;
}

uint64_t gw_talk_longest(void)
{
	uint64_t longest, now = gw_now_ns();

	pthread_mutex_lock(&talk.lock);
	longest = talk.longest_ns;
	for (const struct flow *f = talk.flows; f < talk.flows + GW_TALK_FLOWS; f++) {
		if (insists(f))
			longest = GW_MAX(longest, now - f->since_ns);
	}
	pthread_mutex_unlock(&talk.lock);
	return longest;
}

/* With the lock held: when those who asked before its first answer had all had theirs, 0: nobody had one yet. */
static uint64_t first_answers(void)
{
	uint64_t first = 0, last = 0;

	for (const struct flow *f = talk.flows; f < talk.flows + GW_TALK_FLOWS; f++) {
		if (f->first_said_ns && (first == 0 || f->first_said_ns < first))
			first = f->first_said_ns;
	}
	for (const struct flow *f = talk.flows; f < talk.flows + GW_TALK_FLOWS; f++) {
		if (f->first_said_ns && f->begun_ns <= first)
			last = GW_MAX(last, f->first_said_ns);
	}
	return last;
}

/* With the lock held: for how long to go on waiting for who waits; 0: for nobody. */
static uint64_t patience(void)
{
	uint64_t longest = 0;

	for (const struct flow *f = talk.flows; f < talk.flows + GW_TALK_FLOWS; f++) {
		if (awaited(f))
			longest = GW_MAX(longest, insists(f) ? OLDEST_NS : ASKED_NS);
	}
	return longest;
}

bool gw_talk_resumed(uint64_t from_ns, uint64_t *answered_ns)
{
	uint64_t wait, now, settled;

	pthread_mutex_lock(&talk.lock);
	*answered_ns = first_answers();
	wait = patience();
	pthread_mutex_unlock(&talk.lock);
	now = gw_now_ns();
	settled = *answered_ns ? *answered_ns + SETTLE_NS : from_ns + NOBODY_NS;
	return now >= settled && now >= from_ns + wait;
}
