/* A guest's PID 1 that turns against the host: the real one, with what lies between it and its ports replaced.
 *
 * It is honest until a container is started that has a variable HOSTILE=port:how:times:hex in its environment. From then
 * on one port misbehaves, with bytes that the test chose (`times` of the decoded hex, one after another):
 *
 *   control:once      the bytes answer every request but synchronisations
 *   control:forever   … and come again without end, until the host hangs up
 *   control:slow      … one byte a second
 *   control:never     no request is answered
 *   control:reopen    the port is closed and opened at every request, and never answers
 *   sync:forever      the bytes come without end as soon as the host synchronises
 *   streams:once      a session is not started; the bytes go to the streams port, "SESS" in them is the session's number
 *   streams:forever   … without end
 *   streams:mute      nothing on the streams port is read or written
 *   log:once          the bytes go to the log, which then goes on
 *   log:forever       … without end, whatever the credit
 *   archive:once      as streams:once, but for archives alone; all else is honest
 *
 * Linked with --wrap for each function here (tests/fakeguest/__init__.py). */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PIECE 32768
#define SECOND_NS 1000000000LL

static char where[16], how[16];
static unsigned char *bytes; /* nothing of it is freed: the VM ends with it */
static size_t length;
static int log_fd = -1, streams_fd = -1;

/* What is being written to a port, besides or instead of what an honest guest would write there. */
static struct flow {
    size_t sent;
    bool on, endless;
    int64_t pause_ns, next_ns;
} json_flow, streams_flow, log_flow;

bool __real_port_pump(struct port *port);
void __real_streams_open(int fd);
bool __real_streams_pump(void);
void __real_log_open(int fd);
bool __real_log_pump(void);
enum outcome __real_command_run(struct port *port, char *line, size_t length, struct buffer *out, struct fault *fault);
int __real_container_step(void);

bool __wrap_port_pump(struct port *port);
void __wrap_streams_open(int fd);
bool __wrap_streams_pump(void);
void __wrap_log_open(int fd);
bool __wrap_log_pump(void);
enum outcome __wrap_command_run(struct port *port, char *line, size_t length, struct buffer *out, struct fault *fault);
int __wrap_container_step(void);

static bool is(const char *port, const char *manner)
{
    return strcmp(where, port) == 0 && (!manner || strcmp(how, manner) == 0);
}

static struct flow begin(void)
{
    return (struct flow){.on = length > 0, .endless = strcmp(how, "forever") == 0,
                         .pause_ns = strcmp(how, "slow") == 0 ? SECOND_NS : 0};
}

/* One write; whether it went. */
static bool flow_on(struct flow *flow, int fd)
{
    if (!flow->on || now_ns(CLOCK_MONOTONIC) < flow->next_ns)
        return false;
    size_t left = length - flow->sent, piece = flow->pause_ns ? 1 : left < PIECE ? left : PIECE;
    ssize_t sent = write(fd, bytes + flow->sent, piece);
    if (sent <= 0)
        return false;
    flow->next_ns = flow->pause_ns ? now_ns(CLOCK_MONOTONIC) + flow->pause_ns : 0;
    flow->sent += (size_t)sent;
    if (flow->sent == length) {
        flow->sent = 0;
        flow->on = flow->endless;
    }
    return true;
}

static int digit(char c)
{
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

static void arm(const char *text, size_t rest)
{
    char head[64];
    unsigned long times;
    int used = 0;
    snprintf(head, sizeof head, "%.*s", (int)(rest < 63 ? rest : 63), text);
    if (sscanf(head, "HOSTILE=%15[a-z]:%15[a-z]:%lu:%n", where, how, &times, &used) != 3 || !used)
        return;
    const char *hex = text + used;
    size_t one = strspn(hex, "0123456789abcdef") / 2;
    length = one * times;
    bytes = malloc(length + PIECE);
    for (size_t i = 0; bytes && i < one; i++)
        bytes[i] = (unsigned char)(digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]));
    for (size_t i = 1; bytes && i < times; i++)
        memcpy(bytes + i * one, bytes, one);
    if (!bytes)
        length = 0;
    if (is("log", NULL))
        log_flow = begin();
    say("hostile from now on: %s %s, %zu bytes", where, how, length);
}

static bool asks(const char *line, const char *command)
{
    char text[64];
    snprintf(text, sizeof text, "{\"execute\": \"%s\"", command);
    return strncmp(line, text, strlen(text)) == 0;
}

static void address(const char *line)
{
    const char *at = strstr(line, "\"session\": ");
    uint32_t session = at ? (uint32_t)strtoul(at + strlen("\"session\": "), NULL, 10) : 0;
    unsigned char *found = bytes;
    static unsigned char mark[4] = "SESS";
    while (length && (found = memmem(found, length - (size_t)(found - bytes), mark, sizeof mark)))
        memcpy(found, &session, sizeof session);
    memcpy(mark, &session, sizeof mark); /* the next one's place is where this one's was */
}

enum outcome __wrap_command_run(struct port *port, char *line, size_t size, struct buffer *out, struct fault *fault)
{
    bool sync = asks(line, "guest-sync-delimited");
    bool session = asks(line, "hyper-exec") || asks(line, "hyper-archive");
    if (asks(line, "hyper-start")) {
        const char *found = memmem(line, size, "HOSTILE=", 8);
        if (found)
            arm(found, size - (size_t)(found - line));
    } else if (port->stats) {
        ; /* what the collector takes of a guest has tests of its own */
    } else if (is("sync", NULL) && sync) {
        json_flow = begin();
        return LATER;
    } else if (is("control", "never") && !sync) {
        return LATER;
    } else if (is("control", "reopen") && !sync) {
        char path[32], name[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", port->source.fd);
        ssize_t got = readlink(path, name, sizeof name - 1);
        source_close(&port->source);
        if (got > 0) {
            name[got] = '\0';
            source_open(&port->source, open(name, O_RDWR | O_NONBLOCK | O_CLOEXEC));
        }
        return LATER;
    } else if (is("control", NULL) && !sync) {
        json_flow = begin();
        return LATER;
    } else if ((is("streams", NULL) && session) || (is("archive", NULL) && asks(line, "hyper-archive"))) {
        address(line);
        streams_flow = begin();
        buffer_text(out, "{\"pid\": 7}");
        return DONE;
    }
    return __real_command_run(port, line, size, out, fault);
}

bool __wrap_port_pump(struct port *port)
{
    static char heard[PIECE];
    bool silent = is("control", "never") || is("control", "reopen");
    if (port->stats)
        return __real_port_pump(port);
    if (!json_flow.on && !(port->waiting && silent)) {
        if (is("control", NULL) || is("sync", NULL))
            port->waiting = false; /* what was to be said has been said */
        return __real_port_pump(port);
    }
    /* Only the end of the connection is listened for: the next one is honest again until it asks. */
    if (read(port->source.fd, heard, sizeof heard) == 0) {
        json_flow.on = port->waiting = false;
        port->in.start = port->in.scan = port->in.end = 0;
        port->source.readable = true;
        return true;
    }
    return flow_on(&json_flow, port->source.fd);
}

void __wrap_streams_open(int fd)
{
    streams_fd = fd;
    __real_streams_open(fd);
}

bool __wrap_streams_pump(void)
{
    if (is("streams", "mute"))
        return false;
    bool more = __real_streams_pump();
    return flow_on(&streams_flow, streams_fd) || more;
}

void __wrap_log_open(int fd)
{
    log_fd = fd;
    __real_log_open(fd);
}

bool __wrap_log_pump(void)
{
    bool more = !log_flow.on && __real_log_pump(); /* no record of the real one is in the middle of these bytes */
    return flow_on(&log_flow, log_fd) || more;
}

/* How long the loop may sleep: not beyond the next byte that is due. */
int __wrap_container_step(void)
{
    int limit_ms = __real_container_step();
    if (json_flow.on && json_flow.pause_ns && (limit_ms < 0 || limit_ms > 100))
        return 100;
    return limit_ms;
}
