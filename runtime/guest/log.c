/* hyper.log: records of what the container wrote and of its life.
 *
 * One record is on its way at a time; the container's pipes are read only once it has gone, so a slow port holds up the
 * container's writes and nothing piles up here. The same holds once the credit is used up that the host gives: the
 * container then waits as it would for a reader of a full pipe. What is left when it has ended is written all the same:
 * it is no more than the pipes hold. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { RECORD_STDOUT = 1, RECORD_STDERR = 2, RECORD_EVENT = 3 };
#define HEAD 16
#define PAYLOAD (32768 - HEAD) /* a record is one write of the port's */
#define FIRST_CREDIT (1 << 20) /* until the host says more */

static struct source port = {.fd = -1}, outputs[2] = {{.fd = -1}, {.fd = -1}};
static unsigned char record[HEAD + PAYLOAD];
static size_t record_length, record_sent;
static char events[4096]; /* texts, each with its NUL, that wait for the record before them */
static size_t events_length;
static int turn;
static int64_t written, limit = FIRST_CREDIT;

void log_credit(int64_t bytes)
{
    limit = bytes < INT64_MAX - written ? written + bytes : INT64_MAX;
}

int64_t log_written(void)
{
    return written;
}

void log_open(int fd)
{
    source_open(&port, fd);
}

void log_sources(int out, int err)
{
    source_open(&outputs[0], out);
    source_open(&outputs[1], err);
}

static void make_record(int type, size_t length)
{
    uint64_t time = (uint64_t)now_ns(CLOCK_REALTIME);
    uint32_t size = (uint32_t)length; /* the guest is little-endian, as the format is */
    record[0] = 'H';
    record[1] = 'P';
    record[2] = (unsigned char)type;
    record[3] = 0;
    memcpy(record + 4, &size, 4);
    memcpy(record + 8, &time, 8);
    record_length = HEAD + length;
    record_sent = 0;
    written += (int64_t)record_length;
}

void log_event(const char *json)
{
    size_t length = strlen(json) + 1;
    if (length > sizeof events - events_length) {
        say("log port stuck, event lost: %s", json);
        return;
    }
    memcpy(events + events_length, json, length);
    events_length += length;
}

static bool next_event(void)
{
    if (!events_length)
        return false;
    size_t length = strlen(events);
    memcpy(record + HEAD, events, length);
    events_length -= length + 1;
    memmove(events, events + length + 1, events_length);
    make_record(RECORD_EVENT, length);
    return true;
}

static bool next_output(void)
{
    if (written >= limit && container.state != EXITED)
        return false;
    for (int i = 0; i < 2; i++) {
        struct source *source = &outputs[turn ^= 1];
        if (source->fd < 0 || !source->readable)
            continue;
        ssize_t got = read(source->fd, record + HEAD, PAYLOAD);
        if (got > 0) {
            make_record(source == outputs ? RECORD_STDOUT : RECORD_STDERR, (size_t)got);
            return true;
        }
        if (got < 0 && errno == EINTR)
            return true;
        if (got < 0 && errno == EAGAIN)
            source->readable = false;
        else
            source_close(source); /* end of file; EIO of a tty says the same */
    }
    return false;
}

bool log_pump(void)
{
    if (record_sent == record_length)
        return next_event() || next_output();
    if (port.fd < 0) { /* said at boot; the container goes on */
        record_sent = record_length;
        return true;
    }
    if (!port.writable)
        return false;
    ssize_t sent = write(port.fd, record + record_sent, record_length - record_sent);
    if (sent > 0)
        record_sent += (size_t)sent;
    else if (sent < 0 && errno != EINTR)
        port.writable = false;
    return true;
}

void log_recheck(void)
{
    outputs[0].readable = outputs[1].readable = true;
}

bool log_drained(bool no_writer)
{
    for (int i = 0; i < 2; i++)
        if (outputs[i].fd >= 0 && !(no_writer && !outputs[i].readable))
            return false;
    return record_sent == record_length && events_length == 0;
}

void log_flush(void)
{
    struct pollfd ready = {.fd = port.fd, .events = POLLOUT};
    if (port.fd < 0)
        return;
    /* A blocking write comes back when the host has taken the bytes, those before them as well. */
    fcntl(port.fd, F_SETFL, 0);
    do {
        while (record_sent < record_length) {
            if (poll(&ready, 1, 1000) != 1 || !(ready.revents & POLLOUT))
                return;
            ssize_t sent = write(port.fd, record + record_sent, record_length - record_sent);
            if (sent <= 0)
                return;
            record_sent += (size_t)sent;
        }
    } while (next_event());
}
