/* hyper-fetch: bytes to a server on the guest's own loopback, and the bytes that come back.
 *
 * The host writes the request and reads the answer, of whatever protocol: nothing of it is looked at here. A fetch goes
 * on beside everything else, and is asked about; nobody waits for the application. Memory is that of all fetches
 * together, and every fetch ends by its deadline. */
#include "hyper.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FETCHES 4
#define READ_BYTES 32768

struct fetch {
    int64_t number; /* 0: free */
    struct source source;
    bool connected, done, truncated;
    const char *error; /* NULL: none */
    size_t sent, send_length;
    char send[FETCH_SEND_BYTES];
    struct buffer in;
    int64_t began_ns, connect_ns, first_ns, total_ns, deadline_ns; /* the three in the middle: since it began; 0: not */
};
static struct fetch fetches[MAX_FETCHES] = {
    {.source.fd = -1}, {.source.fd = -1}, {.source.fd = -1}, {.source.fd = -1}};

static const char *error_name(int error)
{
    switch (error) {
    case ECONNREFUSED: return "ECONNREFUSED";
    case ECONNRESET: return "ECONNRESET";
    case EPIPE: return "EPIPE";
    case ETIMEDOUT: return "ETIMEDOUT";
    case ENETUNREACH: return "ENETUNREACH";
    case EADDRNOTAVAIL: return "EADDRNOTAVAIL";
    case EMFILE: return "EMFILE";
    case ENOMEM: return "ENOMEM";
    default: return "EUNKNOWN";
    }
}

static void hang_up(struct fetch *fetch, bool abort)
{
    if (fetch->source.fd < 0)
        return;
    /* An application that does not answer is not left with a connection that is half closed. */
    struct linger at_once = {.l_onoff = 1};
    if (abort)
        setsockopt(fetch->source.fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    int fd = source_release(&fetch->source); /* by name: a child on its way to exec may hold the file as well */
    close(fd);
}

static void forget(struct fetch *fetch)
{
    hang_up(fetch, true);
    buffer_free(&fetch->in);
    fetch->number = 0;
}

static void finish(struct fetch *fetch, int error)
{
    fetch->done = true;
    fetch->error = error ? error_name(error) : NULL;
    fetch->total_ns = now_ns(CLOCK_MONOTONIC) - fetch->began_ns;
    hang_up(fetch, error || fetch->truncated);
}

static struct fetch *find(int64_t number)
{
    for (int i = 0; i < MAX_FETCHES; i++)
        if (fetches[i].number == number)
            return &fetches[i];
    return NULL;
}

/* A place, and memory: results that nobody has come for go first, the oldest before the others. */
static struct fetch *make_room(int64_t bytes)
{
    for (;;) {
        struct fetch *room = NULL, *oldest = NULL;
        int64_t left = FETCH_TOTAL_BYTES;
        for (int i = 0; i < MAX_FETCHES; i++) {
            struct fetch *one = &fetches[i];
            if (!one->number) {
                room = one;
                continue;
            }
            left -= (int64_t)one->in.limit;
            if (one->done && (!oldest || one->began_ns < oldest->began_ns))
                oldest = one;
        }
        if (room && left >= bytes)
            return room;
        if (!oldest)
            return NULL;
        forget(oldest);
    }
}

bool fetch_start(const struct fetch_request *request, struct fault *fault)
{
    if (container.state != RUNNING)
        return refuse(fault, BAD_STATE, "no container runs");
    if (find(request->number))
        return refuse(fault, BAD_STATE, "there is a fetch of this number");
    struct fetch *fetch = make_room(request->max_bytes);
    if (!fetch)
        return refuse(fault, BAD_STATE, "too many fetches at once");
    int64_t now = now_ns(CLOCK_MONOTONIC);
    *fetch = (struct fetch){.number = request->number,
                            .source.fd = -1,
                            .send_length = strlen(request->send),
                            .in.limit = (size_t)request->max_bytes,
                            .began_ns = now,
                            .deadline_ns = now + request->deadline_ms * 1000000};
    memcpy(fetch->send, request->send, fetch->send_length);
    struct sockaddr_in server = {.sin_family = AF_INET,
                                 .sin_port = htons((uint16_t)request->port),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        finish(fetch, errno);
        return true;
    }
    /* Connecting before it is watched: a socket that does not connect yet reports an end. */
    int error = connect(fd, (struct sockaddr *)&server, sizeof server) == 0 || errno == EINPROGRESS ? 0 : errno;
    source_open(&fetch->source, fd);
    if (error)
        finish(fetch, error);
    return true;
}

static void connected(struct fetch *fetch)
{
    int error = 0;
    socklen_t size = sizeof error;
    struct sockaddr_in peer;
    socklen_t peer_size = sizeof peer;
    getsockopt(fetch->source.fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        finish(fetch, error);
    } else if (getpeername(fetch->source.fd, (struct sockaddr *)&peer, &peer_size) != 0) {
        fetch->source.writable = false; /* an event of another time */
    } else {
        fetch->connected = true;
        fetch->connect_ns = now_ns(CLOCK_MONOTONIC) - fetch->began_ns;
        if (!fetch->send_length)
            finish(fetch, 0);
    }
}

static void send_some(struct fetch *fetch)
{
    ssize_t sent = send(fetch->source.fd, fetch->send + fetch->sent, fetch->send_length - fetch->sent, MSG_NOSIGNAL);
    if (sent >= 0)
        fetch->sent += (size_t)sent;
    else if (errno == EAGAIN)
        fetch->source.writable = false;
    else if (errno != EINTR)
        fetch->sent = fetch->send_length; /* it may have answered all the same: reading tells */
}

static void receive_some(struct fetch *fetch)
{
    static char data[READ_BYTES];
    ssize_t got = recv(fetch->source.fd, data, sizeof data, 0);
    if (got < 0) {
        fetch->source.readable = errno == EINTR;
        if (errno != EAGAIN && errno != EINTR)
            finish(fetch, errno);
        return;
    }
    if (got == 0) {
        finish(fetch, 0);
        return;
    }
    if (!fetch->first_ns)
        fetch->first_ns = now_ns(CLOCK_MONOTONIC) - fetch->began_ns;
    size_t room = fetch->in.limit - fetch->in.length, length = (size_t)got < room ? (size_t)got : room;
    buffer_bytes(&fetch->in, data, length);
    fetch->truncated = length < (size_t)got;
    if (fetch->in.failed || fetch->truncated)
        finish(fetch, fetch->in.failed ? ENOMEM : 0);
}

bool fetch_pump(void)
{
    bool more = false;
    for (int i = 0; i < MAX_FETCHES; i++) {
        struct fetch *fetch = &fetches[i];
        if (!fetch->number || fetch->done)
            continue;
        if (!fetch->connected) {
            if (fetch->source.writable)
                connected(fetch);
        } else if (fetch->sent < fetch->send_length && fetch->source.writable) {
            send_some(fetch);
        } else if (fetch->source.readable) {
            receive_some(fetch);
        }
        bool sends = !fetch->connected || fetch->sent < fetch->send_length;
        more |= !fetch->done && ((sends && fetch->source.writable) || (fetch->connected && fetch->source.readable));
    }
    return more;
}

int fetch_step(void)
{
    int64_t now = now_ns(CLOCK_MONOTONIC), next_ns = -1;
    for (int i = 0; i < MAX_FETCHES; i++) {
        struct fetch *fetch = &fetches[i];
        if (!fetch->number || fetch->done)
            continue;
        int64_t left_ns = fetch->deadline_ns - now;
        if (left_ns <= 0)
            finish(fetch, ETIMEDOUT);
        else if (next_ns < 0 || left_ns < next_ns)
            next_ns = left_ns;
    }
    return next_ns < 0 ? -1 : (int)(next_ns / 1000000) + 1;
}

static void put_time(struct buffer *out, const char *name, int64_t ns)
{
    buffer_text(out, name);
    if (ns)
        buffer_int(out, ns);
    else
        buffer_text(out, "null");
}

bool fetch_result(int64_t number, int64_t offset, int64_t max_bytes, struct buffer *out, struct fault *fault)
{
    struct fetch *fetch = find(number);
    if (!fetch)
        return refuse(fault, BAD_STATE, "there is no fetch of this number");
    if (!fetch->done) {
        buffer_text(out, "{\"state\": \"pending\"}");
        return true;
    }
    size_t from = (uint64_t)offset < fetch->in.length ? (size_t)offset : fetch->in.length;
    size_t left = fetch->in.length - from, length = (uint64_t)max_bytes < left ? (size_t)max_bytes : left;
    put_time(out, "{\"state\": \"done\", \"connect_ns\": ", fetch->connect_ns);
    put_time(out, ", \"first_byte_ns\": ", fetch->first_ns);
    put_time(out, ", \"total_ns\": ", fetch->total_ns);
    buffer_text(out, ", \"error\": ");
    if (fetch->error)
        buffer_quoted(out, fetch->error, strlen(fetch->error));
    else
        buffer_text(out, "null");
    buffer_text(out, ", \"length\": ");
    buffer_int(out, (int64_t)fetch->in.length);
    buffer_text(out, fetch->truncated ? ", \"truncated\": true, \"data\": " : ", \"truncated\": false, \"data\": ");
    buffer_quoted(out, fetch->in.data ? fetch->in.data + from : "", length);
    buffer_text(out, "}");
    if (length == left) /* all of it was taken */
        forget(fetch);
    return true;
}
