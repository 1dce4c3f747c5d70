/* hyper.streams: stdin of the container and the streams of exec sessions, multiplexed with credits.
 *
 * What is to be sent is state of the sessions, not a queue: a frame is made when the port has taken the one before it. */
#include "hyper.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

enum { RESET, DATA, END, CREDIT, EXIT, CLOSE };
#define HEAD 12
#define PAYLOAD 32768
#define WINDOW (256 * 1024)
#define RING (2 * WINDOW) /* after a RESET the host has a whole window again, whatever is still held here */
#define CREDIT_STEP (64 * 1024)
#define SESSIONS 128 /* slot 0 is the container */
#define ATTACHED 64
#define CREDIT_MAX (1 << 30)
#define GIVEN_UP 64 /* how many are kept in mind */

struct session {
    bool used, attached, exited, tty;
    uint32_t id;
    pid_t pid;
    int exit_code, signal;
    struct source in, out[2];
    bool end_due[2], input_ended;
    int64_t credit[2]; /* bytes that the host takes of stdout and stderr */
    char *ring;        /* stdin on its way to the process */
    size_t head, held;
    int64_t window; /* bytes that the host may still send */
};

static struct source port = {.fd = -1};
static struct session sessions[SESSIONS];
static unsigned char in[HEAD + PAYLOAD], out[16 + HEAD + PAYLOAD];
static size_t in_length, out_length, out_sent;
static bool lost, reset_due;
static unsigned char nonce[8];
static int turn;
/* Sessions that the host has closed before they were there: it did not wait for the answer to its request. */
static uint32_t given_up[GIVEN_UP];
static unsigned given_up_count;
static unsigned resets, resets_before; /* in all, and when the session that is about to start was asked for */

void streams_open(int fd)
{
    source_open(&port, fd);
    sessions[0] = (struct session){.used = true, .attached = true, .window = WINDOW};
    sessions[0].in.fd = sessions[0].out[0].fd = sessions[0].out[1].fd = -1;
}

static struct session *find(uint32_t id)
{
    for (int i = 0; i < SESSIONS; i++)
        if (sessions[i].used && sessions[i].id == id)
            return &sessions[i];
    return NULL;
}

static void close_input(struct session *s)
{
    source_close(&s->in);
    free(s->ring);
    s->ring = NULL;
    s->held = 0;
}

static void drop(struct session *s)
{
    close_input(s);
    source_close(&s->out[0]);
    source_close(&s->out[1]);
    s->used = false;
}

static struct session *free_slot(void)
{
    for (int i = 1; i < SESSIONS; i++)
        if (!sessions[i].used)
            return &sessions[i];
    for (int i = 1; i < SESSIONS; i++) /* held open by something in the background that nobody listens to */
        if (!sessions[i].attached && sessions[i].exited) {
            drop(&sessions[i]);
            return &sessions[i];
        }
    return NULL;
}

bool streams_can_start(uint32_t id, struct fault *fault)
{
    int attached = 0;
    if (find(id))
        return refuse(fault, BAD_STATE, "session: %u is in use", id);
    for (int i = 1; i < SESSIONS; i++)
        attached += sessions[i].used && sessions[i].attached;
    if (attached >= ATTACHED || !free_slot())
        return refuse(fault, BAD_STATE, "session: %d sessions are open, and that is the limit", attached);
    resets_before = resets;
    return true;
}

static bool open_ring(struct session *s, int input)
{
    if (input < 0) {
        close_input(s);
        return true;
    }
    if (!s->ring)
        s->ring = malloc(RING); /* touched only as far as it is used */
    return s->ring && source_open(&s->in, input);
}

void streams_container(int input, int tty)
{
    sessions[0].tty = tty >= 0;
    sessions[0].out[0].fd = tty; /* for its size alone: its output is the log's */
    if (!open_ring(&sessions[0], input))
        say("no memory for the container's stdin");
}

static void detach(struct session *s)
{
    s->attached = false;
    s->input_ended = true;
}

static bool is_given_up(uint32_t id)
{
    for (int i = 0; i < GIVEN_UP; i++)
        if (given_up[i] == id)
            return true;
    return resets != resets_before;
}

bool streams_start(uint32_t id, pid_t pid, int input, int output, int err, struct fault *fault)
{
    struct session *s = free_slot();
    if (!s)
        return refuse(fault, BAD_STATE, "session: none is free");
    *s = (struct session){.used = true, .attached = true, .id = id, .pid = pid, .window = WINDOW, .tty = err < 0};
    s->credit[0] = s->credit[1] = WINDOW;
    s->in.fd = -1;
    source_open(&s->out[0], output);
    source_open(&s->out[1], err);
    if (is_given_up(id))
        detach(s);
    return open_ring(s, input) || refuse(fault, GENERIC, "no memory for stdin");
}

void streams_exited(pid_t pid, int exit_code, int signal)
{
    for (int i = 1; i < SESSIONS; i++)
        if (sessions[i].used && sessions[i].pid == pid && !sessions[i].exited) {
            sessions[i].exited = true;
            sessions[i].exit_code = exit_code;
            sessions[i].signal = signal;
        }
}

bool streams_resize(uint32_t id, int rows, int columns, struct fault *fault)
{
    struct session *s = find(id);
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    if (!s || !s->tty || s->out[0].fd < 0)
        return refuse(fault, BAD_STATE, "session: %u has no terminal", id);
    return ioctl(s->out[0].fd, TIOCSWINSZ, &size) == 0 || refuse(fault, GENERIC, "cannot resize: %s", strerror(errno));
}

static void take_data(struct session *s, const unsigned char *data, size_t length)
{
    if ((int64_t)length > s->window || (length > RING - s->held && s != sessions)) {
        detach(s); /* beyond the credit: not one byte of it is to be trusted */
        return;
    }
    s->window -= (int64_t)length;
    if (length > RING - s->held) /* unread through several RESETs, each with credit anew: what does not fit is lost */
        length = RING - s->held;
    bool early = s == sessions && container.state < RUNNING; /* stdin may come before the container */
    if (early && !s->ring)
        s->ring = malloc(RING);
    if (!s->ring || (s->in.fd < 0 && !early) || s->input_ended)
        return; /* nobody reads it */
    size_t tail = (s->head + s->held) % RING, first = length < RING - tail ? length : RING - tail;
    memcpy(s->ring + tail, data, first);
    memcpy(s->ring, data + first, length - first);
    s->held += length;
}

static void take_frame(uint32_t id, int type, int stream, const unsigned char *data, size_t length)
{
    struct session *s = find(id);
    uint32_t more;
    if (type == RESET && id == 0 && length == sizeof nonce) {
        memcpy(nonce, data, sizeof nonce);
        reset_due = true;
        out_length = out_sent = 0; /* the host skips what it has of it */
        resets++;
        for (int i = 1; i < SESSIONS; i++)
            if (sessions[i].used)
                detach(&sessions[i]);
        sessions[0].window = WINDOW;
        sessions[0].attached = true;
    } else if (!s) { /* it has ended meanwhile, or is yet to start */
        if (type == CLOSE)
            given_up[given_up_count++ % GIVEN_UP] = id;
    } else if (type == DATA && stream == 0) {
        take_data(s, data, length);
    } else if (type == END && stream == 0) {
        s->input_ended = true;
    } else if (type == CREDIT && (stream == 1 || stream == 2) && length == 4) {
        memcpy(&more, data, 4);
        s->credit[stream - 1] += more;
        if (s->credit[stream - 1] > CREDIT_MAX)
            s->credit[stream - 1] = CREDIT_MAX;
    } else if (type == CLOSE) {
        detach(s);
    }
}

/* Where the next RESET begins, from a place on: what a host sends first when it has connected anew. */
static size_t find_reset(size_t from)
{
    static const unsigned char head[HEAD] = {[8] = sizeof nonce};
    const unsigned char *at = memmem(in + from, in_length - from, head, HEAD);
    lost = !at;
    if (at)
        return (size_t)(at - in);
    return in_length - from < HEAD ? from : in_length - HEAD + 1;
}

/* Frames that `in` holds in full; a length out of range loses the thread until the next RESET. */
static void take_frames(void)
{
    size_t at = lost ? find_reset(0) : 0;
    while (!lost && in_length - at >= HEAD) {
        uint32_t id, length;
        memcpy(&id, in + at, 4);
        memcpy(&length, in + at + 8, 4);
        if (length > PAYLOAD) {
            say("streams port: a frame of %u bytes; waiting for a RESET", length);
            at = find_reset(at);
            continue;
        }
        if (in_length - at - HEAD < length)
            break;
        take_frame(id, in[at + 4], in[at + 5], in + at + HEAD, length);
        at += HEAD + length;
    }
    in_length -= at;
    memmove(in, in + at, in_length);
}

static bool receive(void)
{
    if (!port.readable)
        return false;
    ssize_t got = read(port.fd, in + in_length, sizeof in - in_length);
    if (got > 0) {
        in_length += (size_t)got;
        take_frames();
        return true;
    }
    port.readable = got < 0 && errno == EINTR;
    if (got == 0) { /* the host has closed the port */
        in_length = 0;
        lost = false;
    }
    return port.readable;
}

static bool feed(struct session *s)
{
    if (s->in.fd < 0)
        return false;
    if (!s->held) {
        if (!s->input_ended)
            return false;
        if (s->tty && s->in.writable)
            (void)!write(s->in.fd, "\004", 1); /* a terminal has no end of file but the one that is typed */
        close_input(s);
        return true;
    }
    if (!s->in.writable)
        return false;
    size_t length = s->held < RING - s->head ? s->held : RING - s->head;
    ssize_t sent = write(s->in.fd, s->ring + s->head, length);
    if (sent > 0) {
        s->head = (s->head + (size_t)sent) % RING;
        s->held -= (size_t)sent;
    } else if (sent < 0 && errno == EAGAIN) {
        s->in.writable = false;
    } else if (sent < 0 && errno != EINTR) {
        close_input(s); /* EPIPE: the process reads no more */
    }
    return true;
}

static void put_head(const struct session *s, int type, int stream, uint32_t length)
{
    unsigned char *at = out + out_length;
    memset(at, 0, HEAD);
    memcpy(at, &s->id, 4);
    at[4] = (unsigned char)type;
    at[5] = (unsigned char)stream;
    memcpy(at + 8, &length, 4);
    out_length += HEAD + length;
}

/* Read one stream of a session: into a frame, or away if nobody listens. */
static bool carry(struct session *s, int stream)
{
    struct source *source = &s->out[stream - 1];
    int64_t limit = s->attached ? s->credit[stream - 1] : PAYLOAD;
    if (source->fd < 0 || !source->readable || limit <= 0)
        return false;
    ssize_t got = read(source->fd, out + out_length + HEAD, limit < PAYLOAD ? (size_t)limit : PAYLOAD);
    if (got > 0 && s->attached) {
        s->credit[stream - 1] -= got;
        put_head(s, DATA, stream, (uint32_t)got);
    } else if (got < 0 && errno == EAGAIN) {
        source->readable = false;
        return false;
    } else if (got == 0 || (got < 0 && errno != EINTR)) {
        source_close(source);
        s->end_due[stream - 1] = true;
    }
    return true;
}

/* The next thing a session has to say, if any, into `out`. */
static bool speak(struct session *s)
{
    int64_t due = WINDOW - s->window - (int64_t)s->held;
    if (due >= CREDIT_STEP && s->attached) {
        uint32_t more = (uint32_t)due;
        memcpy(out + out_length + HEAD, &more, 4);
        put_head(s, CREDIT, 0, 4);
        s->window += due;
        return true;
    }
    if (s == sessions) /* its output is the log's */
        return false;
    for (int stream = 1; stream <= 2; stream++) {
        if (carry(s, stream))
            return true;
        if (s->end_due[stream - 1]) {
            s->end_due[stream - 1] = false;
            if (s->attached)
                put_head(s, END, stream, 0);
            return true;
        }
    }
    if (!s->exited || s->out[0].fd >= 0 || s->out[1].fd >= 0)
        return false;
    if (s->attached) {
        char *text = (char *)out + out_length + HEAD;
        int length = s->signal
                         ? snprintf(text, 96, "{\"exit_code\": %d, \"signal\": %d}", s->exit_code, s->signal)
                         : snprintf(text, 96, "{\"exit_code\": %d, \"signal\": null}", s->exit_code);
        put_head(s, EXIT, 0, (uint32_t)length);
    }
    drop(s);
    return true;
}

static bool transmit(void)
{
    if (!port.writable)
        return false;
    size_t left = out_length - out_sent;
    ssize_t sent = write(port.fd, out + out_sent, left < PAYLOAD ? left : PAYLOAD);
    if (sent > 0)
        out_sent += (size_t)sent;
    else if (sent < 0 && errno != EINTR)
        port.writable = false;
    if (out_sent == out_length)
        out_sent = out_length = 0;
    return sent > 0;
}

bool streams_pump(void)
{
    bool more = port.fd >= 0 && receive();
    for (int i = 0; i < SESSIONS; i++)
        more |= sessions[i].used && feed(&sessions[i]);
    if (out_length)
        return transmit() || more;
    if (reset_due) {
        reset_due = false;
        memset(out, 0xFF, 16);
        out_length = 16;
        memcpy(out + out_length + HEAD, nonce, sizeof nonce);
        put_head(&(struct session){.id = 0}, RESET, 0, sizeof nonce);
        return true;
    }
    for (int i = 0; i < SESSIONS; i++) {
        struct session *s = &sessions[(turn + i) % SESSIONS];
        if (s->used && speak(s)) {
            turn = (turn + i + 1) % SESSIONS; /* the next one's turn */
            return true;
        }
    }
    return more;
}

bool streams_idle(void)
{
    for (int i = 1; i < SESSIONS; i++)
        if (sessions[i].used && sessions[i].attached)
            return false;
    return out_length == 0;
}
