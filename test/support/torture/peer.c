/*
 * The daemon's neighbours as processes of their own, so that they can be stopped and killed: an agent, which plays one VM,
 * and a shim. Every byte that they send tells where it belongs, and every byte that they get is checked.
 *
 *   peer agent DIR [options]      listens on DIR/ctl.sock and DIR/io.sock, and runs what newcontainer and execcmd ask for
 *   peer shim SOCKET [options]    claims the token that the environment variable TOKEN holds
 *
 * A stream is made of records, and a record is one io message, one frame:
 *
 *   offset  size
 *   0       1     stream: 0 stdin, 1 stdout, 2 stderr
 *   1       1     generation: how many shims the session had before the one that wrote this; 0 for output
 *   2       2     0xc0de
 *   4       4     identity of the session
 *   8       4     number of the record; stdout and stderr of one process are numbered together
 *   12      4     length, these 16 bytes included
 *   16            bytes that follow from all of the above
 *
 * What a peer has sent and received stands in a file that it maps (--progress), so that it is known of a killed one too. It
 * tells the rest on stdout: plain words on the way, one line of JSON with sizes and SHA-256 at the end.
 *
 * The wire formats are those of PROTOCOL.md.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 12, CTL_HEADER = 8, RECORD_HEADER = 16 }; /* bytes; frames and io messages both have 12 */
enum { COMMAND, RESPONSE, STREAM, NOTIFICATION };
enum { CONNECT_SHIM = 4, DISCONNECT_SHIM = 5 };
enum { STDIN, STDOUT, STDERR };
enum { EXECCMD = 6, READY = 8, ACK = 9, ERROR = 10, PING = 12, NEXT = 14, READFILE = 16, NEWCONTAINER = 17, KILLCONTAINER = 18 };

enum {
	MAX_RECORD = 64 * 1024,
	MAX_PROCESSES = 64,       /* of one agent */
	MAX_GENERATIONS = 16,
	STDIN_WINDOW = 512,       /* bytes that a C agent can hold for one process */
	PINGS_PER_WINDOW = 4,     /* answered ones, after which it is sure to hold none */
	BURST = 64,               /* writes of output before anything is read */
	RECONNECTS = 100,
	RECONNECT_PAUSE = 100000  /* microseconds */
};

static struct {
	const char *progress, *token;
	uint32_t seed, identity, generation, records, max, largest, die, cut;
	int buffer;
	bool next, eof, hold, gaps, stay;
} opt = { .max = 8192 };

/* What is known of a peer however it ends: of a shim in the first slot, of an agent's processes in one each. */
static struct slot {
	uint64_t first, next; /* numbers of output records: the first, and the one behind the last, that went over the wire */
	uint64_t output;      /* bytes of them */
	uint64_t input;       /* bytes of stdin that went over the wire */
	uint64_t before;      /* bytes of the records before the first */
	uint64_t unread;      /* bytes that a shim which kills itself leaves in its socket */
} *progress;

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	printf("{\"failure\":\"");
	vprintf(format, args);
	printf("\"}\n");
	va_end(args);
	fflush(stdout);
	_exit(3);
}

static void __attribute__((format(printf, 1, 2))) tell(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	fflush(stdout);
}

static void put32(uint8_t *p, uint32_t v) { v = __builtin_bswap32(v); memcpy(p, &v, 4); }
static uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return __builtin_bswap32(v); }

static uint64_t mix(uint64_t x)
{
	x ^= x >> 31;
	x *= 0x7fb5d329728ea185;
	x ^= x >> 27;
	x *= 0x81dadef4bc2dd44d;
	return x ^ x >> 33;
}

static uint32_t below(uint32_t bound)
{
	static uint64_t state;
	state = mix(state + opt.seed + 1);
	return (state >> 32) % bound;
}

/* --------------------------------------------------------------------------------------------------- SHA-256 -- */

struct sha { uint32_t h[8]; uint64_t size; uint8_t block[64]; };

static uint32_t sha_k[64], sha_start[8];

/* The first 32 bits of the fractional part of a root of a prime: exact, by searching in integers. */
static uint32_t root_bits(uint32_t prime, int degree)
{
	unsigned __int128 low = 0, high = (unsigned __int128)1 << 38, target = prime;
	for (int i = 0; i < degree; i++) target <<= 32;
	while (high - low > 1) {
		unsigned __int128 middle = (low + high) / 2, power = middle;
		for (int i = 1; i < degree; i++) power *= middle;
		if (power <= target) low = middle;
		else high = middle;
	}
	return (uint32_t)low;
}

static void make_sha_tables(void)
{
	int found = 0;
	for (uint32_t n = 2; found < 64; n++) {
		bool prime = true;
		for (uint32_t d = 2; d * d <= n; d++) prime = prime && n % d != 0;
		if (!prime) continue;
		if (found < 8) sha_start[found] = root_bits(n, 2);
		sha_k[found++] = root_bits(n, 3);
	}
}

static void sha_init(struct sha *s) { memcpy(s->h, sha_start, sizeof s->h); s->size = 0; }

static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha_block(uint32_t *state, const uint8_t *p)
{
	uint32_t w[64], h[8];
	for (int i = 0; i < 16; i++) w[i] = get32(p + 4 * i);
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
		       (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(h, state, sizeof h);
	for (int i = 0; i < 64; i++) {
		uint32_t a = h[0], e = h[4];
		uint32_t one = h[7] + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & h[5]) ^ (~e & h[6])) + sha_k[i] + w[i];
		uint32_t two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & h[1]) ^ (a & h[2]) ^ (h[1] & h[2]));
		memmove(h + 1, h, 7 * sizeof *h);
		h[4] += one;
		h[0] = one + two;
	}
	for (int i = 0; i < 8; i++) state[i] += h[i];
}

static void sha_add(struct sha *s, const uint8_t *bytes, size_t size)
{
	while (size > 0) {
		size_t at = s->size % 64, part = size < 64 - at ? size : 64 - at;
		memcpy(s->block + at, bytes, part);
		s->size += part;
		bytes += part;
		size -= part;
		if (at + part == 64) sha_block(s->h, s->block);
	}
}

/* Its size and digest, as JSON. */
static void print_sha(const char *name, const struct sha *s)
{
	static const uint8_t padding[64] = { 0x80 };
	struct sha end = *s;
	uint8_t bits[8];
	put32(bits, s->size >> 29);
	put32(bits + 4, s->size << 3);
	sha_add(&end, padding, (119 - s->size % 64) % 64 + 1);
	sha_add(&end, bits, 8);
	printf("%s{\"bytes\":%llu,\"sha256\":\"", name, (unsigned long long)s->size);
	for (int i = 0; i < 8; i++) printf("%08x", end.h[i]);
	printf("\"}");
}

/* --------------------------------------------------------------------------------------------------- records -- */

struct place { uint32_t stream, generation, identity, number; };

static void put_record_header(uint8_t *p, struct place at, uint32_t length)
{
	put32(p, at.stream << 24 | at.generation << 16 | 0xc0de);
	put32(p + 4, at.identity);
	put32(p + 8, at.number);
	put32(p + 12, length);
}

static void put_record(uint8_t *p, struct place at, uint32_t length)
{
	put_record_header(p, at, length);
	uint64_t state = mix((uint64_t)get32(p) << 32 | at.identity) ^ mix(at.number);
	for (uint32_t i = RECORD_HEADER; i < length; i += 8) {
		state = state * 6364136223846793005 + 1442695040888963407;
		uint64_t word = state ^ state >> 29;
		memcpy(p + i, &word, length - i < 8 ? length - i : 8);
	}
}

/* How long a record is, and for output, whose it is: the same in every run. */
static uint32_t length_of(uint32_t identity, uint32_t number, uint32_t max)
{
	return RECORD_HEADER + mix((uint64_t)identity << 32 | number) % (max - RECORD_HEADER + 1);
}

static uint32_t stream_of(uint32_t identity, uint32_t number)
{
	return mix((uint64_t)identity << 32 | number) >> 60 < 4 ? STDERR : STDOUT;
}

/* ----------------------------------------------------------------------------------------------------- wires -- */

/* How much of `size` bytes is read or written at once. */
static size_t piece(size_t size)
{
	if (opt.cut == 0) return size;
	size_t most = 1 + below(opt.cut);
	return size < most ? size : most;
}

static void shrink(int fd)
{
	if (opt.buffer == 0) return;
	/* Linux counts what a Unix socket holds in its sender's buffer */
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &opt.buffer, sizeof opt.buffer);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &opt.buffer, sizeof opt.buffer);
}

/* Writes all; false when the peer has gone. */
static bool write_all(int fd, const uint8_t *bytes, size_t size)
{
	while (size > 0) {
		ssize_t n = send(fd, bytes, piece(size), MSG_NOSIGNAL);
		if (n < 0) return false;
		bytes += n;
		size -= n;
	}
	return true;
}

/* Reads all; false at the end. */
static bool read_all(int fd, uint8_t *bytes, size_t size)
{
	while (size > 0) {
		ssize_t n = recv(fd, bytes, piece(size), 0);
		if (n <= 0) return false;
		bytes += n;
		size -= n;
	}
	return true;
}

static struct sockaddr_un address(const char *format, const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	snprintf(a.sun_path, sizeof a.sun_path, format, path);
	return a;
}

static void map_progress(void)
{
	size_t size = MAX_PROCESSES * sizeof *progress;
	int fd = open(opt.progress, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, size)) fail("no file for the progress");
	progress = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (progress == MAP_FAILED) fail("no map of the progress");
	close(fd);
}

/* ------------------------------------------------------------------------------------------------- the agent -- */

/* What comes in must be the generations' records in their order, each generation's up to where its shim was killed. */
struct input {
	uint32_t generation, number;
	struct sha sha[MAX_GENERATIONS];
	uint8_t held[2 * MAX_RECORD];
	size_t size;
	bool eof;
};

static struct process {
	uint32_t stdio, identity, records, max, status, next;
	bool awaits_eof, over;
	struct sha out[3];
	uint32_t window, pings; /* stdin since it was last empty, and all pings answered by then */
	struct input in;
} *processes[MAX_PROCESSES];

static int process_count;
static uint32_t pings;

static struct process *find(uint64_t sequence)
{
	for (int i = 0; i < process_count; i++)
		if (processes[i]->stdio == sequence) return processes[i];
	fail("stdin for the sequence %llu, which nobody has", (unsigned long long)sequence);
}

static void drop(struct input *in, size_t size)
{
	in->size -= size;
	memmove(in->held, in->held + size, in->size);
}

/* Whether a later generation begins at `at`: 1 yes, 0 no, -1 it cannot be told yet. */
static int begins(const struct process *p, size_t at)
{
	const struct input *in = &p->in;
	uint8_t head[RECORD_HEADER];
	for (uint32_t generation = in->generation + 1; generation < MAX_GENERATIONS; generation++) {
		put_record_header(head, (struct place){ STDIN, generation, p->identity, 0 }, 0);
		size_t known = in->size - at < 12 ? in->size - at : 12;
		if (memcmp(in->held + at, head, known)) continue;
		return known == 12 ? 1 : in->eof ? 0 : -1;
	}
	return 0;
}

/* Takes the records that are there. */
static void check_input(struct process *p)
{
	static uint8_t expected[MAX_RECORD];
	struct input *in = &p->in;
	while (in->size > 0) {
		struct place place = { STDIN, in->generation, p->identity, in->number };
		uint32_t length = RECORD_HEADER;
		if (in->size >= RECORD_HEADER) length = get32(in->held + 12);
		if (length < RECORD_HEADER || length > MAX_RECORD) length = RECORD_HEADER;
		put_record(expected, place, length);
		size_t known = in->size < length ? in->size : length, same = 0;
		size_t compared = known > 12 && in->size < RECORD_HEADER ? 12 : known; /* its length is not known yet */
		while (same < compared && in->held[same] == expected[same]) same++;
		if (same == compared) same = known;
		if (same == length) {
			sha_add(&in->sha[in->generation], in->held, length);
			drop(in, length);
			in->number++;
			continue;
		}
		if (same == known && !in->eof) return; /* more may come */
		/* not what this generation would have said: it was killed, and another one begins no later than here */
		size_t at = 0;
		int begun = 0;
		for (; at <= same && at < in->size && (begun = begins(p, at)) == 0; at++);
		if (begun < 0) return;
		if (begun == 0 && same == in->size) at = in->size; /* killed, and nobody came after it */
		else if (begun == 0) fail("stdin of session %u: record %u is not as it was sent", p->identity, in->number);
		sha_add(&in->sha[in->generation], in->held, at);
		if (begun > 0) in->generation = in->held[at + 1];
		in->number = 0;
		drop(in, at);
	}
}

static void take_stdin(uint64_t sequence, const uint8_t *data, size_t size)
{
	struct process *p = find(sequence);
	struct input *in = &p->in;
	if (in->eof) fail("stdin of session %u after its end", p->identity);
	if (pings - p->pings >= PINGS_PER_WINDOW) {
		p->pings = pings;
		p->window = 0;
	}
	p->window += size;
	if (opt.next && p->window > STDIN_WINDOW) fail("%u bytes of stdin at once are too many for a C agent", p->window);
	in->eof = size == 0;
	if (in->size + size > sizeof in->held) fail("no sense in the stdin of session %u", p->identity);
	memcpy(in->held + in->size, data, size);
	in->size += size;
	progress[(p->stdio - 3) / 2].input += size;
	check_input(p);
}

static uint32_t number_behind(const char *text, const char *key)
{
	const char *at = strstr(text, key);
	return at ? strtoul(at + strlen(key), NULL, 10) : 0;
}

static void start(const char *json)
{
	struct process *p = calloc(1, sizeof *p);
	const char *plan = strstr(json, "\"plan\":\"");
	int eof = 0;
	if (!p || process_count == MAX_PROCESSES) fail("too many processes");
	p->stdio = number_behind(json, "\"stdio\":");
	if (!plan || p->stdio < 3 ||
	    sscanf(plan, "\"plan\":\"%u %u %u %u %d", &p->identity, &p->records, &p->max, &p->status, &eof) != 5 ||
	    p->max < RECORD_HEADER || p->max > MAX_RECORD || (p->stdio - 3) / 2 >= MAX_PROCESSES)
		fail("a start without a plan");
	p->awaits_eof = eof;
	for (int i = 0; i < 3; i++) sha_init(&p->out[i]);
	for (int i = 0; i < MAX_GENERATIONS; i++) sha_init(&p->in.sha[i]);
	processes[process_count++] = p;
}

/* What has come on a channel and is no whole message yet. Nobody is connected where `fd` is negative. */
struct channel { int fd, listener; size_t size; uint8_t bytes[128 * 1024 + 1]; };

/* Replies that a connection did not take: the first that the next one gets. */
static struct { size_t size; uint8_t bytes[64 * 1024]; } owed;

/* Whether the container has ended, whose processes all are its first one's. */
static bool ended(void) { return process_count > 0 && processes[0]->over; }

static bool reply(struct channel *ctl, const uint8_t *command, uint32_t size)
{
	uint8_t message[4096], *at = message;
	uint32_t read[2] = { CTL_HEADER, size - CTL_HEADER }, code = get32(command);
	/* a file holds what was asked for */
	uint32_t payload = code == READFILE && size - CTL_HEADER < 2048 ? size - CTL_HEADER : 0;
	for (int i = 0; opt.next && i < 2; i++, at += 12) {
		put32(at, NEXT);
		put32(at + 4, 12);
		put32(at + 8, read[i]);
	}
	put32(at, code == KILLCONTAINER && ended() ? ERROR : ACK);
	put32(at + 4, CTL_HEADER + payload);
	memcpy(at + CTL_HEADER, command + CTL_HEADER, payload);
	at += CTL_HEADER + payload;
	if (code == PING) pings++;
	if (ctl->fd >= 0 && write_all(ctl->fd, message, at - message)) return true;
	if (owed.size + (at - message) > sizeof owed.bytes) fail("too many replies that nobody takes");
	memcpy(owed.bytes + owed.size, message, at - message);
	owed.size += at - message;
	return false;
}

static int listen_at(const char *format, const char *directory)
{
	struct sockaddr_un a = address(format, directory);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 1)) fail("cannot listen: %s", strerror(errno));
	return fd;
}

/* The one client of a channel, as QEMU has it; --stay: the first of several, one after another. */
static void accept_one(struct channel *c)
{
	c->fd = accept(c->listener, NULL, NULL);
	if (c->fd < 0) fail("cannot accept: %s", strerror(errno));
	if (!opt.stay) {
		close(c->listener);
		c->listener = -1;
	}
	shrink(c->fd);
}

/* The message on its way to the proxy, and whose it is. */
static struct { uint8_t bytes[HEADER + MAX_RECORD]; size_t at, size; struct process *of; uint32_t stream; } out;

static uint8_t *put_io(uint8_t *p, uint32_t sequence, uint32_t length)
{
	put32(p, 0);
	put32(p + 4, sequence);
	put32(p + 8, HEADER + length);
	return p + HEADER;
}

/* Puts the next message of the next process that has one into `out`; false where none has. */
static bool next_message(void)
{
	static int turn;
	for (int i = 0; i < process_count; i++) {
		struct process *p = processes[turn++ % process_count];
		out.at = 0;
		out.of = p;
		if (p->next < p->records) {
			uint32_t length = length_of(p->identity, p->next, p->max);
			out.stream = stream_of(p->identity, p->next);
			put_record(put_io(out.bytes, p->stdio + out.stream - STDOUT, length),
			           (struct place){ out.stream, 0, p->identity, p->next }, length);
			out.size = HEADER + length;
			return true;
		}
		if (!p->over && (p->in.eof || !p->awaits_eof)) {
			*put_io(put_io(out.bytes, p->stdio, 0), p->stdio, 1) = p->status;
			out.size = 2 * HEADER + 1;
			return true;
		}
	}
	return false;
}

/* `out` has been written to its end. */
static void sent(void)
{
	struct process *p = out.of;
	struct slot *slot = &progress[(p->stdio - 3) / 2];
	if (p->next < p->records) {
		sha_add(&p->out[out.stream], out.bytes + HEADER, out.size - HEADER);
		slot->output += out.size - HEADER;
		slot->next = ++p->next;
		return;
	}
	p->over = true;
	printf("{\"stdio\":%u", p->stdio);
	print_sha(",\"stdout\":", &p->out[STDOUT]);
	print_sha(",\"stderr\":", &p->out[STDERR]);
	for (uint32_t i = 0; i <= p->in.generation; i++) print_sha(i == 0 ? ",\"stdin\":[" : ",", &p->in.sha[i]);
	tell("]}\n");
}

/* Reads what is there, in one piece; -1 at the end, 0 where there is nothing. */
static int read_some(struct channel *c)
{
	ssize_t n = recv(c->fd, c->bytes + c->size, piece(sizeof c->bytes - 1 - c->size), MSG_DONTWAIT);
	if (n <= 0) return n < 0 && errno == EAGAIN ? 0 : -1;
	c->size += n;
	return 1;
}

/* The next whole message behind `at`, whose size stands at `offset`; NULL where there is none. */
static uint8_t *message_at(struct channel *c, size_t at, size_t header, size_t offset, uint32_t *size)
{
	if (c->size - at < header) return NULL;
	*size = get32(c->bytes + at + offset);
	if (*size < header || *size >= sizeof c->bytes) fail("a message of %u bytes", *size);
	return c->size - at < *size ? NULL : c->bytes + at;
}

static void forget(struct channel *c, size_t size)
{
	c->size -= size;
	memmove(c->bytes, c->bytes + size, c->size);
}

static void take_input(struct channel *io)
{
	size_t at = 0;
	uint32_t size;
	for (uint8_t *m; (m = message_at(io, at, HEADER, 8, &size)); at += size)
		take_stdin((uint64_t)get32(m) << 32 | get32(m + 4), m + HEADER, size - HEADER);
	forget(io, at);
}

static void take_commands(struct channel *ctl)
{
	size_t at = 0;
	uint32_t size;
	for (uint8_t *m; (m = message_at(ctl, at, CTL_HEADER, 4, &size)); at += size) {
		uint8_t behind = m[size];
		m[size] = 0;
		if (get32(m) == EXECCMD || get32(m) == NEWCONTAINER) start((char *)m + CTL_HEADER);
		m[size] = behind;
		reply(ctl, m, size);
	}
	forget(ctl, at);
}

/* Writes output while the proxy takes it, and not for too long. */
static bool write_output(int fd)
{
	for (int i = 0; i < BURST; i++) {
		if (out.at == out.size && !next_message()) {
			out.at = out.size = 0;
			return true;
		}
		ssize_t n = send(fd, out.bytes + out.at, piece(out.size - out.at), MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0) return errno == EAGAIN;
		out.at += n;
		if (out.at == out.size) sent();
	}
	return true;
}

/* A connection has ended. Everything that it had sent has been read. */
static void leave(struct channel *c)
{
	if (c->size > 0) fail("a message that was torn");
	close(c->fd);
	c->fd = -1;
}

/* The first connection gets READY, the next ones the replies that those before did not take. */
static void greet(struct channel *ctl)
{
	static bool booted;
	uint8_t ready[CTL_HEADER];
	put32(ready, READY);
	put32(ready + 4, CTL_HEADER);
	if (booted ? write_all(ctl->fd, owed.bytes, owed.size) : write_all(ctl->fd, ready, sizeof ready)) owed.size = 0;
	booted = true;
}

/* The message of which a part was taken is lost with its connection. */
static void lose_output(void)
{
	if (out.at == 0 || out.at == out.size) return;
	sent();
	out.at = out.size = 0;
}

static struct pollfd watch(const struct channel *c, short events)
{
	return c->fd < 0 ? (struct pollfd){ .fd = c->listener, .events = POLLIN } : (struct pollfd){ .fd = c->fd, .events = events };
}

static void run_agent(const char *directory)
{
	static struct channel ctl = { .fd = -1 }, io = { .fd = -1 };
	ctl.listener = listen_at("%s/ctl.sock", directory);
	io.listener = listen_at("%s/io.sock", directory);
	tell("listening\n");
	for (;;) {
		bool has_output = io.fd >= 0 && (out.at < out.size || next_message());
		struct pollfd fds[] = { watch(&ctl, POLLIN), watch(&io, POLLIN | (has_output ? POLLOUT : 0)) };
		if (poll(fds, 2, -1) < 0) continue;
		if (ctl.fd < 0 && fds[0].revents) {
			accept_one(&ctl);
			greet(&ctl);
			continue;
		}
		if (io.fd < 0 && fds[1].revents) {
			accept_one(&io);
			continue;
		}
		int commands = ctl.fd >= 0 && fds[0].revents ? read_some(&ctl) : 0, input = 0;
		/* stdin that was written before a ping is taken before the ping is answered */
		while (io.fd >= 0 && (fds[1].revents & ~POLLOUT || commands > 0) && (input = read_some(&io)) > 0) take_input(&io);
		take_commands(&ctl);
		if (has_output && input >= 0 && !write_output(io.fd)) {
			while ((input = read_some(&io)) > 0) take_input(&io);
			input = -1;
		}
		if (commands < 0) leave(&ctl);
		if (input < 0) {
			leave(&io);
			lose_output();
		}
		if ((commands < 0 || input < 0) && !opt.stay) return;
	}
}

/* -------------------------------------------------------------------------------------------------- the shim -- */

static struct sha received[3], given;
static uint32_t written; /* records of stdin */
static bool fresh;       /* nothing has come since the connection was made */
static int connections, gaps;

static bool send_frame(int fd, int type, int opcode, const uint8_t *payload, uint32_t size)
{
	static uint8_t frame[HEADER + MAX_RECORD];
	memcpy(frame, (uint8_t[]){ 0, 2, HEADER / 4, 0, 0, 0, type, opcode }, 8);
	put32(frame + 8, size);
	memcpy(frame + HEADER, payload, size);
	return write_all(fd, frame, HEADER + size);
}

static void report(const char *end)
{
	printf("{\"connections\":%d,\"gaps\":%d,\"first\":%llu,\"next\":%llu,", connections, gaps,
	       (unsigned long long)progress->first, (unsigned long long)progress->next);
	print_sha("\"stdout\":", &received[STDOUT]);
	print_sha(",\"stderr\":", &received[STDERR]);
	print_sha(",\"stdin\":", &given);
	tell(",%s}\n", end);
}

/* Connects and claims; -1 where nobody listens, or the connection ended before the answer. */
static int claim(const char *path)
{
	struct sockaddr_un a = address("%s", path);
	uint8_t head[HEADER], payload[4096];
	char json[256];
	int size = snprintf(json, sizeof json, "{\"token\":\"%s\"}", opt.token);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	shrink(fd);
	if (connect(fd, (struct sockaddr *)&a, sizeof a) || !send_frame(fd, COMMAND, CONNECT_SHIM, (uint8_t *)json, size) ||
	    !read_all(fd, head, HEADER) || get32(head + 8) > sizeof payload || !read_all(fd, payload, get32(head + 8))) {
		close(fd);
		return -1;
	}
	if ((head[6] & 15) != RESPONSE || head[7] != CONNECT_SHIM) fail("no response to ConnectShim");
	if (head[6] & 0xf0) {
		report("\"refused\":true");
		exit(1);
	}
	fresh = true;
	connections++;
	return fd;
}

static int claim_again(const char *path)
{
	for (int i = 0; i < RECONNECTS; i++) {
		usleep(RECONNECT_PAUSE);
		int fd = claim(path);
		if (fd >= 0) return fd;
	}
	report("\"unconnected\":true");
	exit(1);
}

/* Takes a record of output, which has to be a whole frame. */
static void check_output(uint32_t stream, const uint8_t *bytes, uint32_t size)
{
	static uint8_t expected[MAX_RECORD];
	uint32_t number = size >= RECORD_HEADER ? get32(bytes + 8) : 0;
	if (size < RECORD_HEADER || get32(bytes + 12) != size) fail("a frame of %u bytes is no record", size);
	put_record(expected, (struct place){ stream, 0, opt.identity, number }, size);
	if (memcmp(expected, bytes, size)) fail("record %u of session %u is not as it was sent", number, opt.identity);
	if (progress->next > 0 ? number != progress->next : !fresh && number > 0) {
		if (!(opt.gaps || fresh) || number < progress->next)
			fail("record %u of session %u comes where %llu should", number, opt.identity, (unsigned long long)progress->next);
		gaps++;
	}
	if (progress->next == 0) {
		progress->first = number;
		for (uint32_t i = 0; i < number; i++) progress->before += length_of(opt.identity, i, opt.largest);
	}
	fresh = false;
	sha_add(&received[stream], bytes, size);
	progress->output += size;
	progress->next = number + 1;
}

/* Stops, and when it is continued, dies with its socket unread, as if it had been killed. */
static void __attribute__((noreturn)) die(int fd)
{
	int unread = 0;
	raise(SIGSTOP);
	shutdown(fd, SHUT_RD); /* nothing more comes, so that what is there can be counted */
	ioctl(fd, FIONREAD, &unread);
	progress->unread = unread;
	kill(getpid(), SIGKILL);
	for (;;) pause();
}

/* Takes one frame; false at the end of the connection. Ends the process where the shadowed one has ended. */
static bool take_frame(int fd)
{
	static uint8_t head[HEADER], payload[MAX_RECORD];
	char end[32];
	if (!read_all(fd, head, HEADER)) return false;
	uint32_t size = get32(head + 8), type = head[6], opcode = head[7];
	if (memcmp(head, (uint8_t[]){ 0, 2, HEADER / 4, 0, 0, 0 }, 6) || size > sizeof payload) fail("a frame with a bad header");
	if (!read_all(fd, payload, size)) return false;
	if (type == STREAM && (opcode == STDOUT || opcode == STDERR)) {
		check_output(opcode, payload, size);
		if (opt.die > 0 && progress->next >= opt.die) die(fd);
		return true;
	}
	if (type != NOTIFICATION || opcode != 0 || size != 1) fail("a frame of type %u, opcode %u, %u bytes", type, opcode, size);
	send_frame(fd, COMMAND, DISCONNECT_SHIM, payload, 0);
	snprintf(end, sizeof end, "\"status\":%d", payload[0]);
	report(end);
	exit(0);
}

/* Sends the next record of stdin, or its end; false at the end of the connection. */
static bool give_stdin(int fd)
{
	static uint8_t record[MAX_RECORD];
	uint32_t length = length_of(~opt.identity, written, opt.max);
	if (written == opt.records) {
		opt.eof = false;
		return send_frame(fd, STREAM, STDIN, record, 0);
	}
	put_record(record, (struct place){ STDIN, opt.generation, opt.identity, written++ }, length);
	if (!send_frame(fd, STREAM, STDIN, record, length)) return false;
	sha_add(&given, record, length);
	progress->input += length;
	return true;
}

static void run_shim(const char *path)
{
	int fd = claim(path);
	if (fd < 0) fd = claim_again(path);
	tell("attached\n");
	if (opt.hold) raise(SIGSTOP);
	for (;;) {
		bool gives = written < opt.records || opt.eof;
		struct pollfd on = { .fd = fd, .events = POLLIN };
		bool alive = poll(&on, 1, gives ? 0 : -1) <= 0 || take_frame(fd);
		if (alive && gives) alive = give_stdin(fd);
		if (alive) continue;
		close(fd);
		fd = claim_again(path);
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "progress", 1, 0, 'p' }, { "seed", 1, 0, 's' },   { "cut", 1, 0, 'c' },     { "buffer", 1, 0, 'b' },
		{ "next", 0, 0, 'n' },     { "identity", 1, 0, 'i' }, { "generation", 1, 0, 'g' }, { "records", 1, 0, 'r' },
		{ "max", 1, 0, 'm' },      { "eof", 0, 0, 'e' },    { "hold", 0, 0, 'h' },
		{ "gaps", 0, 0, 'a' },     { "stay", 0, 0, 'y' },     { "largest", 1, 0, 'l' }, { "die", 1, 0, 'd' },    { 0 }
	};
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	make_sha_tables();
	for (int i = 0; i < 3; i++) sha_init(&received[i]);
	sha_init(&given);
	for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		uint32_t value = optarg ? strtoul(optarg, NULL, 10) : 0;
		switch (c) {
		case 'p': opt.progress = optarg; break;
		case 's': opt.seed = value; break;
		case 'c': opt.cut = value; break;
		case 'b': opt.buffer = value; break;
		case 'n': opt.next = true; break;
		case 'i': opt.identity = value; break;
		case 'g': opt.generation = value; break;
		case 'r': opt.records = value; break;
		case 'm': opt.max = value; break;
		case 'e': opt.eof = true; break;
		case 'h': opt.hold = true; break;
		case 'a': opt.gaps = true; break;
		case 'y': opt.stay = true; break;
		case 'l': opt.largest = value; break;
		case 'd': opt.die = value; break;
		default: return 2;
		}
	}
	opt.token = getenv("TOKEN");
	if (argc - optind != 2 || !opt.progress) return 2;
	map_progress();
	if (!strcmp(argv[optind], "agent")) run_agent(argv[optind + 1]);
	else if (opt.token) run_shim(argv[optind + 1]);
	else return 2;
	return 0;
}
