/*
 * Load for cc-proxy: plays both neighbours of the daemon over real Unix sockets and checks every byte.
 *
 * Three processes, so that the daemon's work can be told from the load's: one supervises and prints, one is the client
 * side (runtimes and shims), one is the agents of all VMs. Every byte of a stream is known beforehand at both ends, so
 * what is lost, reordered, changed or delivered to another session ends the run with "ok":false and exit status 1.
 *
 *   generator stdout|stdin|echo|ctl|churn|idle --socket PATH --dir DIR [options]    a proxy at PATH
 *   generator stdout|stdin|echo --socket PATH --relay AGENT [options]               a byte relay from PATH to AGENT
 *   generator start --socket PATH --samples N -- COMMAND...                         time from fork to the first answer
 *
 * With --relay each session is a connection of its own and both ends speak the agent's io protocol, since a relay
 * changes no header; where AGENT is PATH itself there is nothing between them. Each run prints one line of JSON.
 * Figures are those of a window of --seconds after --warmup seconds. Times are of CLOCK_MONOTONIC; CPU times are the
 * kernel's, of all threads of a process.
 *
 * The wire formats are those of PROTOCOL.md.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 12, CTL_HEADER = 8 }; /* bytes; frames and io messages both have 12 */
enum { COMMAND, RESPONSE, STREAM, NOTIFICATION };
enum { REGISTER_VM, UNREGISTER_VM, ATTACH_VM, HYPER, CONNECT_SHIM, DISCONNECT_SHIM };
enum { READY = 8, ACK = 9, NEXT = 14, NEWCONTAINER = 17 };
enum direction { STDIN, STDOUT };

enum {
	PATTERN = 32749,         /* bytes after which a stream repeats itself: a prime, unlike every buffer's size */
	MAX_DATA = 16 * 1024,    /* largest data of one message */
	BUFFER = 256 * 1024,     /* bytes of any buffer */
	BATCH = 64 * 1024,       /* bytes of messages written at once, if they are there */
	MAX_SAMPLES = 1 << 20,
	CHURN_OUTPUT = 5,        /* messages that a process of `churn` writes, of 1,000 bytes each */
	CHURN_STATUS = 7,
	FAULTY = 1000            /* the message that --fault spoils */
};

/* ---------------------------------------------------------------------------------------------------- options -- */

static struct {
	const char *mode, *socket, *relay, *dir, *fault;
	pid_t pid;
	int payload, sessions, vms, idle, clients, flood_payload, flood_sessions;
	long samples;
	double seconds, warmup, megabytes, timeout;
	bool go;
	char **command;
} opt = { .payload = 64, .sessions = 1, .vms = 1, .clients = 1, .samples = 10000, .seconds = 1, .warmup = 0.4, .timeout = 30 };

/* ---------------------------------------------------------------------------- what the processes have in common -- */

static struct shared {
	atomic_flag failed;
	char failure[512];
	char doing[64]; /* the client's present step, told when time runs out */
	atomic_ullong bytes, messages; /* that have arrived where they were sent to */
	atomic_ullong flooded;         /* bytes of output that the agents have sent, final once `flood_over` */
	atomic_bool flood_over;
	atomic_bool over;              /* the client is content, and goes */
	pid_t client, agent;
} *shared;

static pid_t supervisor;

static void print_failure(void)
{
	for (char *p = shared->failure; *p; p++)
		if (*p == '"' || *p == '\\' || (unsigned char)*p < ' ') *p = '\'';
	printf("{\"mode\":\"%s\",\"ok\":false,\"error\":\"%s\"}\n", opt.mode, shared->failure);
	fflush(stdout);
}

/* Ends the run. The first failure of any process is the one that is told. */
static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
	if (!atomic_flag_test_and_set(&shared->failed)) {
		va_list args;
		va_start(args, format);
		vsnprintf(shared->failure, sizeof shared->failure, format, args);
		va_end(args);
		if (getpid() == supervisor) print_failure();
	}
	_exit(1);
}

/* An agent's peer has gone: the end, if the client has gone. */
static void __attribute__((noreturn)) lost(const char *what)
{
	if (atomic_load(&shared->over)) _exit(0);
	fail("the other side has closed %s", what);
}

static void doing(const char *what) { snprintf(shared->doing, sizeof shared->doing, "%s", what); }

static uint64_t of_clock(clockid_t clock)
{
	struct timespec t;
	return clock_gettime(clock, &t) ? 0 : (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static uint64_t now(void) { return of_clock(CLOCK_MONOTONIC); }

/* Nanoseconds of CPU that all threads of a process have had; 0 where there is none. */
static uint64_t cpu_of(pid_t pid)
{
	clockid_t clock;
	return pid && !clock_getcpuclockid(pid, &clock) ? of_clock(clock) : 0;
}

/* ---------------------------------------------------------------------------------------------------- buffers -- */

struct buffer { uint8_t *bytes; size_t start, end; };

static size_t held(const struct buffer *b) { return b->end - b->start; }

/* Room for `size` bytes at the end of what is held. */
static uint8_t *append(struct buffer *b, size_t size)
{
	if (!b->bytes && !(b->bytes = malloc(BUFFER))) fail("out of memory");
	if (b->start == b->end) b->start = b->end = 0;
	if (b->end + size > BUFFER && b->start > 0) {
		memmove(b->bytes, b->bytes + b->start, held(b));
		b->end -= b->start;
		b->start = 0;
	}
	if (b->end + size > BUFFER) fail("a buffer is full");
	b->end += size;
	return b->bytes + b->end - size;
}

/* Reads what is there, half a buffer at most; false at the end of the file. */
static bool read_into(struct buffer *b, int fd)
{
	uint8_t *at = append(b, BUFFER / 2);
	ssize_t n = recv(fd, at, BUFFER / 2, MSG_DONTWAIT);
	b->end -= BUFFER / 2 - (n > 0 ? n : 0);
	return n > 0 || (n < 0 && errno == EAGAIN);
}

/* Writes what the socket takes at once; false when the peer has gone. */
static bool write_from(struct buffer *b, int fd)
{
	while (held(b) > 0) {
		ssize_t n = send(fd, b->bytes + b->start, held(b), MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0) return errno == EAGAIN;
		b->start += n;
	}
	return true;
}

/* --------------------------------------------------------------------------------------------- sessions and VMs -- */

struct session {
	int number;        /* tells its streams from all others' */
	uint64_t sequence; /* its stdio on the io channel */
	uint64_t at[2];    /* bytes of each direction that this process has sent or received */
	char token[64];
	int fd;            /* the shim's connection */
	struct buffer in, out;
};

/* What the processes of a VM do. */
enum role { SINK, FLOOD, ECHO, SCRIPT };

struct vm {
	enum role role;
	int count;
	struct session *sessions;
	char ctl_path[104], io_path[104];
	int ctl_listener, io_listener, ctl, runtime;
	struct buffer ctl_in;
};

/* An agent's end of an io connection: of a VM, or of one session through a relay. */
struct channel {
	int fd;
	struct vm *vm;
	struct session *sessions;
	int count, turn;
	struct buffer in, out;
};

static struct vm *vms;
static struct channel *channels; /* through a proxy: one for each VM */
static int vm_count, session_count;

static uint8_t pattern[PATTERN + MAX_DATA];

static void make_pattern(void)
{
	uint64_t x = 1;
	for (int i = 0; i < PATTERN; i++) {
		x = x * 6364136223846793005 + 1442695040888963407;
		pattern[i] = x >> 56;
	}
	memcpy(pattern + PATTERN, pattern, MAX_DATA);
}

/* The next bytes of a stream. */
static const uint8_t *expected(const struct session *s, enum direction direction)
{
	return pattern + ((uint64_t)s->number * 7919 + direction * 3571 + s->at[direction]) % PATTERN;
}

static void check(struct session *s, enum direction direction, const uint8_t *data, uint32_t length)
{
	if (length > MAX_DATA || memcmp(data, expected(s, direction), length))
		fail("%s of session %d is not what was sent, within %u bytes after byte %llu",
		     direction == STDIN ? "stdin" : "stdout", s->number, length, (unsigned long long)s->at[direction]);
	s->at[direction] += length;
}

static void restart(struct session *s, int number)
{
	s->number = number;
	s->at[STDIN] = s->at[STDOUT] = 0;
	s->in.start = s->in.end = s->out.start = s->out.end = 0;
}

static void add_vms(enum role role, int count, int sessions)
{
	for (int i = 0; i < count; i++) {
		struct vm *vm = &vms[vm_count++];
		*vm = (struct vm){ .role = role, .count = sessions, .ctl = -1, .runtime = -1 };
		vm->sessions = calloc(sessions + 1, sizeof *vm->sessions);
		if (!vm->sessions) fail("out of memory");
		for (int k = 0; k < sessions; k++) {
			restart(&vm->sessions[k], session_count++);
			vm->sessions[k].sequence = vm->sessions[k].number; /* through a relay; a proxy gives its own */
			vm->sessions[k].fd = -1;
		}
	}
}

/* --------------------------------------------------------------------------------------------------- messages -- */

static void put32(uint8_t *p, uint32_t v) { v = __builtin_bswap32(v); memcpy(p, &v, 4); }
static uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return __builtin_bswap32(v); }
static uint64_t get64(const uint8_t *p) { return (uint64_t)get32(p) << 32 | get32(p + 4); }

static void put_io(uint8_t *p, uint64_t sequence, uint32_t length)
{
	put32(p, sequence >> 32);
	put32(p + 4, sequence);
	put32(p + 8, HEADER + length);
}

static void put_frame(uint8_t *p, int type, int opcode, uint32_t length)
{
	memcpy(p, (uint8_t[]){ 0, 2, HEADER / 4, 0, 0, 0, type, opcode }, 8);
	put32(p + 8, length);
}

/* The header of a session's data, as its sender writes it. */
static void put_header(uint8_t *p, const struct session *s, enum direction direction, uint32_t length)
{
	if (direction == STDIN && !opt.relay) put_frame(p, STREAM, STDIN, length);
	else put_io(p, s->sequence, length);
}

struct message { const uint8_t *header, *data; uint32_t length; };

/* Takes the next whole frame or io message; false when more bytes are needed. */
static bool take(struct buffer *b, bool io, struct message *m)
{
	if (held(b) < HEADER) return false;
	m->header = b->bytes + b->start;
	m->data = m->header + HEADER;
	m->length = get32(m->header + 8) - (io ? HEADER : 0);
	if (m->length > BUFFER / 2) fail("a message of %u bytes", m->length);
	if (!io && memcmp(m->header, (uint8_t[]){ 0, 2, HEADER / 4, 0, 0, 0 }, 6)) fail("a frame with a bad header");
	if (held(b) < HEADER + m->length) return false;
	b->start += HEADER + m->length;
	return true;
}

/* Spoils the message at the end of the buffer, of `size` bytes of data: what the checks at the other end are for. */
static void spoil(struct buffer *out, size_t size)
{
	uint8_t *data = out->bytes + out->end - size, saved[MAX_DATA];
	if (!strcmp(opt.fault, "flip")) {
		data[size - 1] ^= 1;
	} else if (!strcmp(opt.fault, "drop")) {
		out->end -= HEADER + size;
	} else { /* exchange its data with that of the message before it */
		memcpy(saved, data, size);
		memcpy(data, data - HEADER - size, size);
		memcpy(data - HEADER - size, saved, size);
	}
}

/* Puts one message of `size` bytes of a session's stream into the buffer. */
static void put_data(struct buffer *out, struct session *s, enum direction direction, uint32_t size)
{
	static unsigned put;
	uint8_t *p = append(out, HEADER + size);
	put_header(p, s, direction, size);
	memcpy(p + HEADER, expected(s, direction), size);
	s->at[direction] += size;
	if (++put == FAULTY && opt.fault) spoil(out, size);
}

/* ------------------------------------------------------------------------------------------------- the agents -- */

enum source { FROM_CLIENT, CTL_LISTENER, IO_LISTENER, CTL, IO };
enum order_kind { START_FLOOD, STOP_FLOOD, POWER_OFF };
struct order { enum order_kind kind; int vm; };

static int orders[2]; /* a pipe from the client */
static int agent_epoll;
static bool flooding;

static void order(enum order_kind kind, int vm)
{
	struct order o = { kind, vm };
	if (write(orders[1], &o, sizeof o) != sizeof o) fail("no agent takes orders: %m");
}

static void watch(int epoll, int operation, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event e = { .events = events, .data.u64 = data };
	if (epoll_ctl(epoll, operation, fd, &e)) fail("epoll_ctl: %m");
}

static void watch_source(int operation, int fd, uint32_t events, enum source source, int index)
{
	watch(agent_epoll, operation, fd, events, (uint64_t)source << 32 | index);
}

/* Writes what is due on an io channel: a batch of output if its VM floods, or what lies there. */
static void push_io(struct channel *c)
{
	bool floods = flooding && c->vm->role == FLOOD && c->count > 0;
	if (floods && held(&c->out) == 0)
		for (int n = 0; n == 0 || held(&c->out) + HEADER + opt.flood_payload <= BATCH; n++) {
			put_data(&c->out, &c->sessions[c->turn], STDOUT, opt.flood_payload);
			c->turn = (c->turn + 1) % c->count;
		}
	if (!write_from(&c->out, c->fd)) lost("an io channel");
	watch_source(EPOLL_CTL_MOD, c->fd, EPOLLIN | (floods || held(&c->out) > 0 ? EPOLLOUT : 0), IO, c - channels);
}

static void put_ctl(uint8_t *p, uint32_t code, uint32_t length)
{
	put32(p, code);
	put32(p + 4, CTL_HEADER + length);
}

static void put_next(struct buffer *out, uint32_t read)
{
	uint8_t *p = append(out, CTL_HEADER + 4);
	put_ctl(p, NEXT, 4);
	put32(p + CTL_HEADER, read);
}

static void send_ctl(struct vm *vm, struct buffer *out)
{
	if (!write_from(out, vm->ctl) || held(out) > 0) fail("the proxy does not read a ctl channel");
}

static long number_after(const char *json, const char *key)
{
	const char *at = strstr(json, key);
	if (!at) fail("no %s in a command", key);
	return strtol(at + strlen(key), NULL, 10);
}

static void accept_io(struct vm *vm)
{
	int fd = accept4(vm->io_listener, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0) fail("accept: %m");
	struct channel *c = opt.relay ? channels : &channels[vm - vms];
	while (opt.relay && c->fd >= 0) c++;
	c->fd = fd;
	c->vm = vm;
	c->count = 0; /* through a relay its first message tells the session */
	if (!opt.relay) {
		c->sessions = vm->sessions;
		c->count = vm->count;
		watch_source(EPOLL_CTL_MOD, vm->io_listener, 0, IO_LISTENER, vm - vms); /* QEMU takes one at a time */
	}
	watch_source(EPOLL_CTL_ADD, fd, EPOLLIN, IO, c - channels);
}

/* A process of `churn`: some output, its end, its status. */
static void run_script(struct vm *vm)
{
	struct channel *c = &channels[vm - vms];
	struct session *s = vm->sessions;
	if (c->fd < 0) accept_io(vm);
	for (int i = 0; i < CHURN_OUTPUT; i++) put_data(&c->out, s, STDOUT, 1000);
	put_io(append(&c->out, HEADER), s->sequence, 0);
	uint8_t *p = append(&c->out, HEADER + 1);
	put_io(p, s->sequence, 1);
	p[HEADER] = CHURN_STATUS;
	push_io(c);
}

static void accept_ctl(struct vm *vm)
{
	static struct buffer out;
	vm->ctl = accept4(vm->ctl_listener, NULL, NULL, SOCK_CLOEXEC);
	if (vm->ctl < 0) fail("accept: %m");
	watch_source(EPOLL_CTL_MOD, vm->ctl_listener, 0, CTL_LISTENER, vm - vms);
	watch_source(EPOLL_CTL_ADD, vm->ctl, EPOLLIN, CTL, vm - vms);
	vm->ctl_in.start = vm->ctl_in.end = 0;
	put_ctl(append(&out, CTL_HEADER), READY, 0);
	send_ctl(vm, &out);
}

static void read_ctl(struct vm *vm)
{
	static struct buffer out;
	struct buffer *in = &vm->ctl_in;
	if (!read_into(in, vm->ctl)) {
		if (vm->role != SCRIPT) lost("a ctl channel");
		close(vm->ctl);
		watch_source(EPOLL_CTL_MOD, vm->ctl_listener, EPOLLIN, CTL_LISTENER, vm - vms);
		return;
	}
	while (held(in) >= CTL_HEADER) {
		uint8_t *message = in->bytes + in->start;
		uint32_t code = get32(message), length = get32(message + 4);
		if (length < CTL_HEADER || length > 16384) fail("a ctl message of %u bytes", length);
		if (held(in) < length) break;
		in->start += length;
		if (!opt.go) put_next(&out, CTL_HEADER);
		if (!opt.go && length > CTL_HEADER) put_next(&out, length - CTL_HEADER);
		put_ctl(append(&out, CTL_HEADER), ACK, 0);
		send_ctl(vm, &out);
		if (code != NEWCONTAINER) continue;
		char json[16384];
		snprintf(json, sizeof json, "%.*s", (int)(length - CTL_HEADER), (char *)message + CTL_HEADER);
		struct session *s = &vm->sessions[number_after(json, "\"index\":")];
		restart(s, number_after(json, "\"number\":"));
		s->sequence = number_after(json, "\"stdio\":");
		if (vm->role == SCRIPT) run_script(vm);
	}
}

static void read_io(struct channel *c)
{
	const uint32_t limit = opt.relay ? MAX_DATA : opt.go ? 1012 : 512; /* what the real agents survive */
	struct message m;
	uint64_t bytes = 0, messages = 0;

	if (!read_into(&c->in, c->fd)) {
		if (c->vm->role != SCRIPT) lost("an io channel");
		close(c->fd);
		c->fd = -1;
		watch_source(EPOLL_CTL_MOD, c->vm->io_listener, EPOLLIN, IO_LISTENER, c->vm - vms);
		return;
	}
	while (take(&c->in, true, &m)) {
		uint64_t sequence = get64(m.header);
		if (opt.relay && c->count == 0) { /* the first message of a connection names its session, and comes back */
			if (sequence >= (uint64_t)session_count) fail("a relay has changed the first message");
			c->sessions = &vms->sessions[sequence];
			c->count = 1;
			memcpy(append(&c->out, HEADER), m.header, HEADER);
			continue;
		}
		struct session *s = c->sessions;
		while (s < c->sessions + c->count && s->sequence != sequence) s++;
		if (s == c->sessions + c->count) fail("stdin for unknown sequence %llu", (unsigned long long)sequence);
		if (m.length == 0 || m.length > limit) fail("stdin in a message of %u bytes", m.length);
		check(s, STDIN, m.data, m.length);
		bytes += m.length;
		messages++;
		if (c->vm->role != ECHO) continue;
		memcpy(append(&c->out, HEADER + m.length), m.header, HEADER + m.length);
		if (opt.fault && s->at[STDIN] / m.length == FAULTY) spoil(&c->out, m.length);
	}
	if (c->vm->role == SINK) {
		atomic_fetch_add(&shared->bytes, bytes);
		atomic_fetch_add(&shared->messages, messages);
	}
	push_io(c);
}

static void take_order(void)
{
	struct order o;
	if (read(orders[0], &o, sizeof o) != sizeof o) _exit(0); /* the client has gone */
	if (o.kind == POWER_OFF) {
		shutdown(vms[o.vm].ctl, SHUT_WR);
		shutdown(channels[o.vm].fd, SHUT_WR);
		return;
	}
	flooding = o.kind == START_FLOOD;
	for (struct channel *c = channels; flooding && c->fd >= 0; c++) push_io(c);
	if (flooding) return;
	for (struct vm *vm = vms; vm < vms + vm_count; vm++)
		for (int k = 0; k < vm->count && vm->role == FLOOD; k++) atomic_fetch_add(&shared->flooded, vm->sessions[k].at[STDOUT]);
	atomic_store(&shared->flood_over, true);
}

static void agent(void)
{
	agent_epoll = epoll_create1(EPOLL_CLOEXEC);
	watch_source(EPOLL_CTL_ADD, orders[0], EPOLLIN, FROM_CLIENT, 0);
	for (int i = 0; i < vm_count; i++) {
		if (!opt.relay) watch_source(EPOLL_CTL_ADD, vms[i].ctl_listener, EPOLLIN, CTL_LISTENER, i);
		watch_source(EPOLL_CTL_ADD, vms[i].io_listener, EPOLLIN, IO_LISTENER, i);
	}
	for (;;) {
		struct epoll_event events[64];
		int n = epoll_wait(agent_epoll, events, 64, -1);
		for (int i = 0; i < n; i++) {
			int index = (uint32_t)events[i].data.u64;
			switch ((enum source)(events[i].data.u64 >> 32)) {
			case FROM_CLIENT: take_order(); break;
			case CTL_LISTENER: accept_ctl(&vms[index]); break;
			case IO_LISTENER: if (opt.relay || channels[index].fd < 0) accept_io(&vms[index]); break;
			case CTL: read_ctl(&vms[index]); break;
			case IO:
				if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_io(&channels[index]);
				else push_io(&channels[index]);
				break;
			}
		}
	}
}

/* ------------------------------------------------------------------------------- runtimes and shims: commands -- */

static int dial(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	snprintf(address.sun_path, sizeof address.sun_path, "%s", opt.socket);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) fail("%s: %m", opt.socket);
	return fd;
}

static void send_all(int fd, const void *bytes, size_t size)
{
	for (ssize_t n; size > 0; bytes = (const char *)bytes + n, size -= n)
		if ((n = send(fd, bytes, size, MSG_NOSIGNAL)) <= 0) fail("a connection broke while %s", shared->doing);
}

static void receive_all(int fd, void *bytes, size_t size)
{
	if (size > 0 && recv(fd, bytes, size, MSG_WAITALL) != (ssize_t)size) fail("a connection ended while %s", shared->doing);
}

/* Sends a command and waits for its response, whose payload it gives, with a 0 behind it. Valid until this thread's next. */
static const char *__attribute__((format(printf, 3, 4))) command(int fd, int opcode, const char *format, ...)
{
	static _Thread_local char frame[HEADER + 1024], reply[HEADER + BUFFER];
	uint8_t *header = (uint8_t *)reply;
	va_list args;
	va_start(args, format);
	int length = vsnprintf(frame + HEADER, sizeof frame - HEADER, format, args);
	va_end(args);
	put_frame((uint8_t *)frame, COMMAND, opcode, length);
	send_all(fd, frame, HEADER + length);
	receive_all(fd, header, HEADER);
	uint32_t size = get32(header + 8);
	if (size >= BUFFER) fail("a response of %u bytes while %s", size, shared->doing);
	receive_all(fd, reply + HEADER, size);
	reply[HEADER + size] = 0;
	if (header[6] != RESPONSE || header[7] != opcode) fail("%.100s instead of a response, while %s", reply + HEADER, shared->doing);
	return reply + HEADER;
}

static void register_vm(struct vm *vm, int life)
{
	vm->runtime = dial();
	const char *reply = command(vm->runtime, REGISTER_VM,
		"{\"containerId\":\"%d-%d-%d\",\"ctlSerial\":\"%s\",\"ioSerial\":\"%s\",\"numIOStreams\":%d}", getpid(),
		(int)(vm - vms), life, vm->ctl_path, vm->io_path, vm->count);
	const char *at = strstr(reply, "\"tokens\":");
	for (int k = 0; k < vm->count; k++) {
		if (!at || !(at = strpbrk(at + 1, "[,")) || sscanf(at + 1, "\"%63[^\"]\"", vm->sessions[k].token) != 1)
			fail("RegisterVM gave no token %d", k);
	}
}

static void start_session(struct vm *vm, struct session *s)
{
	s->fd = dial();
	command(s->fd, CONNECT_SHIM, "{\"token\":\"%s\"}", s->token);
	command(vm->runtime, HYPER,
		"{\"hyperName\":\"newcontainer\",\"tokens\":[\"%s\"],\"data\":{\"id\":\"c%d\",\"index\":%d,\"number\":%d,"
		"\"process\":{\"terminal\":false,\"args\":[\"load\"]}}}", s->token, s->number, (int)(s - vm->sessions), s->number);
}

static void set_up(void)
{
	doing("setting up");
	for (struct vm *vm = vms; vm < vms + vm_count; vm++) {
		if (!opt.relay) register_vm(vm, 0);
		for (struct session *s = vm->sessions; s < vm->sessions + vm->count; s++) {
			if (!opt.relay) {
				start_session(vm, s);
			} else {
				uint8_t hello[HEADER];
				put_io(hello, s->sequence, 0);
				s->fd = dial();
				send_all(s->fd, hello, HEADER);
				receive_all(s->fd, hello, HEADER);
			}
		}
		close(vm->runtime); /* as a runtime does after each command */
	}
}

/* --------------------------------------------------------------------------------------- measuring and printing -- */

struct snapshot { uint64_t time, bytes, messages, cpu, client_cpu, agent_cpu; };

static struct snapshot from, to;
static uint64_t window_at; /* when the measured window may begin */

static struct snapshot snapshot(void)
{
	return (struct snapshot){ now(), atomic_load(&shared->bytes), atomic_load(&shared->messages), cpu_of(opt.pid),
		cpu_of(getpid()), cpu_of(shared->agent) };
}

static void begin_warmup(void)
{
	doing("measuring");
	window_at = now() + (uint64_t)(opt.warmup * 1e9);
	from.time = 0;
}

/* Whether the load is to go on: during the warm-up and the window. */
static bool measuring(void)
{
	uint64_t time = now();
	if (time < window_at) return true;
	if (from.time == 0) from = snapshot();
	if (time < from.time + opt.seconds * 1e9 &&
	    (opt.megabytes == 0 || atomic_load(&shared->bytes) - from.bytes < opt.megabytes * 1e6)) return true;
	to = snapshot();
	return false;
}

static uint32_t samples[MAX_SAMPLES]; /* nanoseconds */
static atomic_size_t sample_count;

static void add_sample(uint64_t since)
{
	if (from.time == 0) return; /* still warming up */
	size_t n = atomic_fetch_add(&sample_count, 1);
	if (n < MAX_SAMPLES) samples[n] = now() - since;
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

static void print_samples(void)
{
	size_t n = atomic_load(&sample_count);
	if (n > MAX_SAMPLES) n = MAX_SAMPLES;
	if (n == 0) fail("no samples");
	qsort(samples, n, sizeof *samples, by_size);
	printf(",\"samples\":%zu,\"p50Us\":%.1f,\"p99Us\":%.1f,\"maxUs\":%.1f", n, samples[n / 2] / 1e3,
	       samples[n * 99 / 100] / 1e3, samples[n - 1] / 1e3);
}

static void print_result(void)
{
	printf("{\"mode\":\"%s\",\"ok\":true,\"payload\":%d,\"seconds\":%.6f,\"bytes\":%llu,\"messages\":%llu,\"cpuSeconds\":%.6f,"
	       "\"clientCpuSeconds\":%.6f,\"agentCpuSeconds\":%.6f,\"startedNs\":%llu,\"endedNs\":%llu",
	       opt.mode, opt.payload, (to.time - from.time) / 1e9, (unsigned long long)(to.bytes - from.bytes),
	       (unsigned long long)(to.messages - from.messages), (to.cpu - from.cpu) / 1e9,
	       (to.client_cpu - from.client_cpu) / 1e9, (to.agent_cpu - from.agent_cpu) / 1e9,
	       (unsigned long long)from.time, (unsigned long long)to.time);
	if (atomic_load(&sample_count) > 0) print_samples();
	printf("}\n");
	fflush(stdout);
}

static void rest(void) { nanosleep(&(struct timespec){ .tv_nsec = 500000 }, NULL); }

/* Waits until `count` bytes have arrived, and no more. */
static void await_bytes(uint64_t count)
{
	snprintf(shared->doing, sizeof shared->doing, "waiting for %llu bytes to arrive", (unsigned long long)count);
	while (atomic_load(&shared->bytes) < count) rest();
	if (atomic_load(&shared->bytes) > count) fail("more bytes arrived than were sent");
}

/* ------------------------------------------------------------------------------------------------ stdout, stdin -- */

static void watch_sessions(int epoll, enum role role, uint32_t events)
{
	for (struct vm *vm = vms; vm < vms + vm_count; vm++)
		for (int k = 0; k < vm->count && vm->role == role; k++)
			watch(epoll, EPOLL_CTL_ADD, vm->sessions[k].fd, events, (uintptr_t)&vm->sessions[k]);
}

/* Checks the output that has come for one session. Gives the exit status, or -1. */
static int read_output(struct session *s, uint64_t *bytes, uint64_t *messages)
{
	struct message m;
	if (!read_into(&s->in, s->fd)) fail("the connection of session %d was closed", s->number);
	while (take(&s->in, opt.relay, &m)) {
		if (!opt.relay && m.header[6] == NOTIFICATION) return m.data[0];
		if (opt.relay ? get64(m.header) != s->sequence : m.header[6] != STREAM || m.header[7] != STDOUT)
			fail("session %d got a message that is not its own", s->number);
		check(s, STDOUT, m.data, m.length);
		*bytes += m.length;
		++*messages;
	}
	return -1;
}

static void read_outputs(int epoll)
{
	struct epoll_event events[64];
	int n = epoll_wait(epoll, events, 64, 1);
	for (int i = 0; i < n; i++) {
		uint64_t bytes = 0, messages = 0;
		if (read_output((struct session *)(uintptr_t)events[i].data.u64, &bytes, &messages) >= 0) fail("a process has ended");
		atomic_fetch_add(&shared->bytes, bytes);
		atomic_fetch_add(&shared->messages, messages);
	}
}

/* Ends a flood: all that was sent has to arrive. */
static void end_flood(int epoll)
{
	doing("waiting for the rest of the output");
	order(STOP_FLOOD, 0);
	while (!atomic_load(&shared->flood_over) || atomic_load(&shared->bytes) < atomic_load(&shared->flooded)) read_outputs(epoll);
	await_bytes(atomic_load(&shared->flooded));
}

static void measure_stdout(void)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	watch_sessions(epoll, FLOOD, EPOLLIN);
	begin_warmup();
	order(START_FLOOD, 0);
	while (measuring()) read_outputs(epoll);
	end_flood(epoll);
}

static void measure_stdin(void)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	uint64_t sent = 0;
	watch_sessions(epoll, SINK, EPOLLOUT | EPOLLRDHUP);
	begin_warmup();
	while (measuring()) {
		struct epoll_event events[64];
		int n = epoll_wait(epoll, events, 64, 1);
		for (int i = 0; i < n; i++) {
			struct session *s = (struct session *)(uintptr_t)events[i].data.u64;
			while (held(&s->out) == 0 || s->out.end + HEADER + opt.payload <= BATCH) put_data(&s->out, s, STDIN, opt.payload);
			if (events[i].events & EPOLLRDHUP || !write_from(&s->out, s->fd)) fail("the connection of session %d was closed", s->number);
		}
	}
	for (struct vm *vm = vms; vm < vms + vm_count; vm++)
		for (struct session *s = vm->sessions; s < vm->sessions + vm->count; s++) {
			send_all(s->fd, s->out.bytes + s->out.start, held(&s->out));
			sent += s->at[STDIN];
		}
	await_bytes(sent);
}

/* --------------------------------------------------------------------------------------------------------- echo -- */

static atomic_bool echoed;

static void *read_flood(void *arg)
{
	int epoll = *(int *)arg;
	while (!atomic_load(&echoed)) read_outputs(epoll);
	end_flood(epoll);
	return NULL;
}

static void measure_echo(void)
{
	struct session *s = vms->sessions;
	pthread_t reader;
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	uint8_t message[HEADER + MAX_DATA];

	begin_warmup();
	if (opt.flood_sessions > 0) {
		watch_sessions(epoll, FLOOD, EPOLLIN);
		if (pthread_create(&reader, NULL, read_flood, &epoll)) fail("pthread_create");
		order(START_FLOOD, 0);
	}
	while (sample_count < (size_t)opt.samples) {
		if (from.time == 0 && now() >= window_at) from = snapshot();
		put_header(message, s, STDIN, opt.payload);
		memcpy(message + HEADER, expected(s, STDIN), opt.payload);
		uint64_t sent = now();
		send_all(s->fd, message, HEADER + opt.payload);
		for (int got = 0; got < opt.payload;) {
			receive_all(s->fd, message, HEADER);
			uint32_t length = get32(message + 8) - (opt.relay ? HEADER : 0);
			if (length > MAX_DATA) fail("an echo of %u bytes", length);
			receive_all(s->fd, message + HEADER, length);
			check(s, STDIN, message + HEADER, length);
			got += length;
		}
		add_sample(sent);
	}
	to = snapshot();
	if (opt.flood_sessions > 0) {
		atomic_store(&echoed, true);
		pthread_join(reader, NULL);
	}
}

/* ---------------------------------------------------------------------------------------------------------- ctl -- */

struct caller { int fd; uint64_t sent; };

static void call(struct caller *c)
{
	static const char ping[] = "{\"hyperName\":\"ping\"}";
	uint8_t frame[HEADER + sizeof ping - 1];
	put_frame(frame, COMMAND, HYPER, sizeof ping - 1);
	memcpy(frame + HEADER, ping, sizeof ping - 1);
	c->sent = now();
	send_all(c->fd, frame, sizeof frame);
}

static void measure_ctl(void)
{
	struct caller callers[opt.clients];
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	for (int i = 0; i < opt.clients; i++) {
		callers[i].fd = dial();
		command(callers[i].fd, ATTACH_VM, "{\"containerId\":\"%d-%d-0\"}", getpid(), i % vm_count);
		watch(epoll, EPOLL_CTL_ADD, callers[i].fd, EPOLLIN, (uintptr_t)&callers[i]);
	}
	begin_warmup();
	for (int i = 0; i < opt.clients; i++) call(&callers[i]);
	while (measuring()) {
		struct epoll_event events[64];
		int n = epoll_wait(epoll, events, 64, 1);
		for (int i = 0; i < n; i++) {
			struct caller *c = (struct caller *)(uintptr_t)events[i].data.u64;
			uint8_t header[HEADER], acknowledged[HEADER];
			put_frame(acknowledged, RESPONSE, HYPER, 0);
			receive_all(c->fd, header, HEADER);
			if (memcmp(header, acknowledged, HEADER)) fail("a ping was not acknowledged");
			add_sample(c->sent);
			atomic_fetch_add(&shared->messages, 1);
			call(c);
		}
	}
}

/* -------------------------------------------------------------------------------------------------------- churn -- */

static atomic_bool churned;

/* One life of a VM after another. The agent accepts the next only when the proxy has let go of the last one's sockets. */
static void *live(void *arg)
{
	struct vm *vm = arg;
	struct session *s = vm->sessions;
	for (int life = 0; !atomic_load(&churned); life++) {
		uint64_t born = now(), bytes = 0, messages = 0;
		int status = -1;
		restart(s, s->number + vm_count);
		register_vm(vm, life);
		start_session(vm, s);
		while (status < 0) {
			uint8_t next;
			if (recv(s->fd, &next, 1, MSG_PEEK) != 1) fail("a shim's connection ended before its process");
			status = read_output(s, &bytes, &messages);
		}
		if (status != CHURN_STATUS || s->at[STDOUT] != CHURN_OUTPUT * 1000) fail("a process ended with status %d", status);
		uint8_t disconnect[HEADER];
		put_frame(disconnect, COMMAND, DISCONNECT_SHIM, 0);
		send_all(s->fd, disconnect, HEADER);
		close(s->fd);
		command(vm->runtime, UNREGISTER_VM, "{\"containerId\":\"%d-%d-%d\"}", getpid(), (int)(vm - vms), life);
		close(vm->runtime);
		order(POWER_OFF, vm - vms);
		add_sample(born);
		atomic_fetch_add(&shared->messages, 1);
	}
	return NULL;
}

static void measure_churn(void)
{
	pthread_t threads[vm_count];
	begin_warmup();
	for (int i = 0; i < vm_count; i++)
		if (pthread_create(&threads[i], NULL, live, &vms[i])) fail("pthread_create");
	while (measuring()) rest();
	atomic_store(&churned, true);
	for (int i = 0; i < vm_count; i++) pthread_join(threads[i], NULL);
}

/* -------------------------------------------------------------------------------------------------- idle, start -- */

/* Says that all is set up, and stays until its stdin ends. */
static void stay(void)
{
	char c;
	printf("{\"mode\":\"idle\",\"ok\":true}\n");
	fflush(stdout);
	doing("staying");
	while (read(STDIN_FILENO, &c, 1) > 0) {}
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (strlen(path) >= sizeof address.sun_path) fail("too long for a socket: %s", path);
	strcpy(address.sun_path, path);
	unlink(path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 128)) fail("%s: %m", path);
	return fd;
}

/* Runs COMMAND with a listening socket as descriptor 3, and asks it something over a connection that waits there. */
static void measure_start(void)
{
	doing("starting a command");
	from = snapshot();
	for (long i = 0; i < opt.samples; i++) {
		int listener = listen_at(opt.socket), fd = dial();
		char question[] = "............{\"containerId\":\"nobody's\"}", answer, number[24];
		put_frame((uint8_t *)question, COMMAND, UNREGISTER_VM, sizeof question - 1 - HEADER);
		send_all(fd, question, sizeof question - 1);
		uint64_t asked = now();
		pid_t child = fork();
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			int null = open("/dev/null", O_RDWR);
			for (int to = 0; to < 3; to++) dup2(null, to);
			if (listener != 3) dup2(listener, 3);
			else fcntl(3, F_SETFD, 0);
			snprintf(number, sizeof number, "%d", getpid());
			setenv("LISTEN_PID", number, 1);
			setenv("LISTEN_FDS", "1", 1);
			snprintf(number, sizeof number, "%llu", (unsigned long long)asked);
			setenv("START_FORKED", number, 1); // for startMarks.cjs
			execv(opt.command[0], opt.command);
			fail("%s: %m", opt.command[0]);
		}
		close(listener);
		receive_all(fd, &answer, 1);
		add_sample(asked);
		close(fd);
		kill(child, SIGTERM);
		waitpid(child, NULL, 0);
	}
	to = snapshot();
}

/* --------------------------------------------------------------------------------------------------------- main -- */

static const struct mode { const char *name; void (*measure)(void); enum role role; } modes[] = {
	{ "stdout", measure_stdout, FLOOD }, { "stdin", measure_stdin, SINK }, { "echo", measure_echo, ECHO },
	{ "ctl", measure_ctl, SINK },        { "churn", measure_churn, SCRIPT }, { "idle", stay, ECHO },
	{ "start", measure_start, SINK },
};
static const struct mode *mode;

static void client(void)
{
	if (mode->measure != measure_churn && mode->measure != measure_start) set_up();
	mode->measure();
	if (mode->measure != stay) print_result();
	atomic_store(&shared->over, true);
	_exit(0);
}

/* Forks a process that does this, and dies with us. */
static pid_t become(void (*role)(void), const sigset_t *blocked)
{
	pid_t pid = fork();
	if (pid < 0) fail("fork: %m");
	if (pid > 0) return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigprocmask(SIG_UNBLOCK, blocked, NULL);
	role();
	_exit(1);
}

/* Waits for the end of the client, a failing agent, or the end of the time; true for a client that was content. */
static bool supervise(const sigset_t *child_ended)
{
	const struct timespec limit = { .tv_sec = opt.timeout };
	for (;;) {
		int status;
		for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
			bool client = pid == shared->client;
			*(client ? &shared->client : &shared->agent) = 0;
			if (status != 0 && !atomic_flag_test_and_set(&shared->failed))
				snprintf(shared->failure, sizeof shared->failure, "a process of the load crashed while %s", shared->doing);
			if (client || status != 0) return status == 0;
		}
		if (sigtimedwait(child_ended, NULL, &limit) < 0 && errno == EAGAIN) {
			if (!atomic_flag_test_and_set(&shared->failed))
				snprintf(shared->failure, sizeof shared->failure, "no end within %.0f s, while %s (%llu have)", opt.timeout,
				         shared->doing, (unsigned long long)atomic_load(&shared->bytes));
			return false;
		}
	}
}

static void open_sockets(void)
{
	for (int i = 0; i < vm_count; i++) {
		struct vm *vm = &vms[i];
		if (opt.relay) {
			snprintf(vm->io_path, sizeof vm->io_path, "%s", opt.relay);
		} else {
			if (snprintf(vm->ctl_path, sizeof vm->ctl_path, "%s/%d-%d.ctl", opt.dir, supervisor, i) >= (int)sizeof vm->ctl_path)
				fail("the directory's path is too long");
			snprintf(vm->io_path, sizeof vm->io_path, "%s/%d-%d.io", opt.dir, supervisor, i);
			vm->ctl_listener = listen_at(vm->ctl_path);
		}
		vm->io_listener = listen_at(vm->io_path);
	}
}

static void usage(void)
{
	fprintf(stderr,
		"usage: generator stdout|stdin|echo|ctl|churn|idle|start --socket PATH [options] [-- COMMAND...]\n"
		"  --dir DIR          for the VMs' sockets\n"
		"  --relay PATH       the agent listens here, and what is at --socket copies bytes to it\n"
		"  --pid PID          the process between, whose CPU is told\n"
		"  --payload BYTES    of one message (64)     --sessions N   of each VM (1)\n"
		"  --vms N            that carry the load (1) --idle N       VMs beside them (0)\n"
		"  --clients N        of ctl, at once (1)     --samples N    of echo and start (10000)\n"
		"  --seconds S        of the window (1)       --warmup S     before it (0.4)\n"
		"  --megabytes N      end the window early    --timeout S    for all of it (30)\n"
		"  --go               agents send no NEXT     --flood BYTESxSESSIONS   on another VM, beside echo\n");
	exit(2);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "socket", 1, 0, 's' }, { "dir", 1, 0, 'd' }, { "relay", 1, 0, 'r' }, { "pid", 1, 0, 'p' }, { "payload", 1, 0, 'b' },
		{ "sessions", 1, 0, 'n' }, { "vms", 1, 0, 'v' }, { "idle", 1, 0, 'i' }, { "clients", 1, 0, 'c' },
		{ "samples", 1, 0, 'N' }, { "seconds", 1, 0, 'S' }, { "warmup", 1, 0, 'w' }, { "megabytes", 1, 0, 'm' },
		{ "timeout", 1, 0, 't' }, { "go", 0, 0, 'g' }, { "flood", 1, 0, 'f' }, { "fault", 1, 0, 'F' }, { 0, 0, 0, 0 },
	};
	if (argc < 2) usage();
	opt.mode = argv[1];
	for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
		if (!strcmp(modes[i].name, opt.mode)) mode = &modes[i];
	optind = 2;
	for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;)
		switch (o) {
		case 's': opt.socket = optarg; break;
		case 'd': opt.dir = optarg; break;
		case 'r': opt.relay = optarg; break;
		case 'p': opt.pid = atoi(optarg); break;
		case 'b': opt.payload = atoi(optarg); break;
		case 'n': opt.sessions = atoi(optarg); break;
		case 'v': opt.vms = atoi(optarg); break;
		case 'i': opt.idle = atoi(optarg); break;
		case 'c': opt.clients = atoi(optarg); break;
		case 'N': opt.samples = atol(optarg); break;
		case 'S': opt.seconds = atof(optarg); break;
		case 'w': opt.warmup = atof(optarg); break;
		case 'm': opt.megabytes = atof(optarg); break;
		case 't': opt.timeout = atof(optarg); break;
		case 'g': opt.go = true; break;
		case 'F': opt.fault = optarg; break;
		case 'f': if (sscanf(optarg, "%dx%d", &opt.flood_payload, &opt.flood_sessions) != 2) usage(); break;
		default: usage();
		}
	if (argv[optind]) opt.command = argv + optind;
	if (!mode || !opt.socket || opt.payload < 1 || opt.payload > MAX_DATA || opt.flood_payload > MAX_DATA || opt.vms < 1 ||
	    opt.sessions < 1 || opt.clients < 1 || opt.idle < 0 || opt.samples < 1 || opt.samples > MAX_SAMPLES)
		usage();
	if (mode->measure == measure_start ? !opt.command : !opt.dir && !opt.relay) usage();
	if (mode->role == FLOOD) opt.flood_payload = opt.payload;
}

int main(int argc, char **argv)
{
	sigset_t child_ended;
	struct rlimit files;

	parse(argc, argv);
	supervisor = getpid();
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	vms = calloc(opt.vms + 1 + opt.idle, sizeof *vms);
	if (shared == MAP_FAILED || !vms || pipe2(orders, O_CLOEXEC)) { perror("generator"); return 1; }
	if (!getrlimit(RLIMIT_NOFILE, &files)) { files.rlim_cur = files.rlim_max; setrlimit(RLIMIT_NOFILE, &files); }
	sigemptyset(&child_ended);
	sigaddset(&child_ended, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child_ended, NULL);

	make_pattern();
	if (mode->measure != measure_start) {
		if (mode->measure != stay) add_vms(mode->role, opt.vms, mode->measure == measure_ctl ? 0 : opt.sessions);
		if (opt.flood_sessions > 0) add_vms(FLOOD, 1, opt.flood_sessions);
		add_vms(ECHO, opt.idle, 1);
		channels = calloc(vm_count + session_count + 1, sizeof *channels);
		if (!channels) fail("out of memory");
		for (int i = 0; i <= vm_count + session_count; i++) channels[i].fd = -1;
		open_sockets();
		shared->agent = become(agent, &child_ended);
	}
	shared->client = become(client, &child_ended);
	bool content = supervise(&child_ended);
	for (int i = 0; i < 2; i++) {
		pid_t left = i == 0 ? shared->client : shared->agent;
		if (left) { kill(left, SIGKILL); waitpid(left, NULL, 0); }
	}
	for (struct vm *vm = vms; vm < vms + vm_count; vm++) {
		unlink(vm->ctl_path);
		unlink(vm->io_path);
	}
	if (!content) print_failure();
	return content ? 0 : 1;
}
