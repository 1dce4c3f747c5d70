/* The agent's fetches against hostile servers, on the host, under the address and undefined-behaviour sanitizers.
 *
 *   fetch_fuzz SEED SECONDS
 *
 * Real code: fetch.c over an epoll set as PID 1 has. The servers, in a child, do what the seed says: refuse, close at
 * once, reset, drip, send without end, send and wait, or say nothing. Each request is begun, asked about at random, and
 * must have an end by its deadline; no call may wait; memory is bounded. */
#include "hyper.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SERVERS 7
#define DEADLINE_MS 60

enum behaviour { CLOSES, RESETS, DRIPS, ENDLESS, ANSWERS, SILENT, DEAF };

struct container container = {.state = RUNNING};
static int epoll_fd;
static uint64_t state;
static long calls, waits;

static uint32_t below(uint32_t limit)
{
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(state >> 33) % limit;
}

int64_t now_ns(int clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

bool source_open(struct source *source, int fd)
{
    *source = (struct source){.fd = fd};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = source};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

int source_release(struct source *source)
{
    int fd = source->fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    *source = (struct source){.fd = -1};
    return fd;
}

static void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    abort();
}

/* How often this process has slept: to be put aside by a busy machine does not count. */
static long sleeps(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_nvcsw;
}

static void count_call(long before)
{
    calls++;
    waits += sleeps() != before;
}

/* --- the servers: one process, which serves whoever comes a little and then the next */
static void serve(const int *listeners)
{
    static char data[65536];
    int clients[64], kinds[64], count = 0;
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        struct pollfd waited[SERVERS];
        for (int i = 0; i < SERVERS; i++)
            waited[i] = (struct pollfd){.fd = listeners[i], .events = i == DEAF ? 0 : POLLIN};
        poll(waited, SERVERS, 1);
        for (int i = 0; i < SERVERS; i++) {
            if (!(waited[i].revents & POLLIN))
                continue;
            int fd = accept4(listeners[i], NULL, NULL, SOCK_NONBLOCK);
            struct linger at_once = {.l_onoff = 1};
            if (fd < 0)
                continue;
            if (i == RESETS)
                setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
            if (i == RESETS || i == CLOSES || count == 64) {
                close(fd);
                continue;
            }
            if (i == ANSWERS) {
                size_t size = 1 + below(sizeof data);
                for (size_t at = 0; at < size; at++)
                    data[at] = (char)below(256);
                if (send(fd, data, size, 0) < 0 || below(2)) {
                    close(fd);
                    continue;
                }
            }
            clients[count] = fd;
            kinds[count++] = i;
        }
        for (int i = 0; i < count; i++) {
            ssize_t sent = kinds[i] == DRIPS ? send(clients[i], "x", 1, 0) : 1;
            if (kinds[i] == ENDLESS)
                sent = send(clients[i], data, sizeof data, 0);
            if ((sent < 0 && errno != EAGAIN) || recv(clients[i], data, sizeof data, 0) == 0 || !below(200)) {
                close(clients[i]);
                clients[i] = clients[--count];
                kinds[i] = kinds[count];
                i--;
            }
        }
    }
}

static int listen_somewhere(int *port, int backlog)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, backlog) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0)
        fail("cannot listen");
    *port = ntohs(address.sin_port);
    return fd;
}

/* --- the loop of PID 1, as far as it matters here */
static void turn(int sleep_ms)
{
    struct epoll_event events[64];
    int count = epoll_wait(epoll_fd, events, 64, sleep_ms);
    for (int i = 0; i < count; i++) {
        struct source *source = events[i].data.ptr;
        uint32_t end = events[i].events & (EPOLLHUP | EPOLLERR);
        source->readable |= (events[i].events & EPOLLIN) || end;
        source->writable |= (events[i].events & EPOLLOUT) || end;
    }
    long before = sleeps();
    int limit_ms = fetch_step();
    fetch_pump();
    count_call(before);
    if (limit_ms > DEADLINE_MS + 1)
        fail("a sleep beyond the deadline");
}

static bool ask(int64_t number, bool *known, long *errors)
{
    static struct buffer out = {.limit = 8 << 20};
    struct fault fault = {0};
    out.length = 0;
    *known = fetch_result(number, below(4) ? 0 : below(300000), 1 + below(262144), &out, &fault);
    for (size_t i = 0; i < out.length; i++)
        if (out.data[i] < 0x20 || out.data[i] > 0x7E)
            fail("a byte in an answer");
    if (out.failed || *known == (fault.class != NULL))
        fail("neither an answer nor a fault");
    bool done = *known && memmem(out.data, out.length, "\"done\"", 6);
    *errors += done && !memmem(out.data, out.length, "\"error\": null", 13);
    return done;
}

int main(int count, char **args)
{
    static char text[FETCH_SEND_BYTES + 1];
    int listeners[SERVERS], ports[SERVERS + 1];
    long begun = 0, refused = 0, done = 0, errors = 0;
    time_t end = time(NULL) + (count > 2 ? atoi(args[2]) : 1);
    state = count > 1 ? strtoull(args[1], NULL, 10) : 1;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < SERVERS; i++)
        listeners[i] = listen_somewhere(&ports[i], i == DEAF ? 1 : 64);
    close(listen_somewhere(&ports[SERVERS], 1)); /* where nobody listens */
    pid_t child = fork();
    if (child == 0)
        serve(listeners);
    memset(text, 'x', FETCH_SEND_BYTES);
    struct { int64_t number, deadline_ns; } waited[8] = {0};
    while (time(NULL) < end) {
        int slot = (int)below(8);
        bool known;
        if (!waited[slot].number) {
            struct fault fault = {0};
            text[below(FETCH_SEND_BYTES)] = '\0';
            struct fetch_request request = {.number = ++begun, .port = ports[below(SERVERS + 1)], .send = text,
                                            .deadline_ms = 1 + below(DEADLINE_MS),
                                            .max_bytes = below(2) ? 1 + below(4096) : 1 + below(FETCH_MAX_BYTES)};
            if (!below(4))
                request.send = "";
            long before = sleeps();
            bool started = fetch_start(&request, &fault);
            count_call(before);
            refused += !started;
            waited[slot].number = started ? begun : 0;
            waited[slot].deadline_ns = now_ns(CLOCK_MONOTONIC) + request.deadline_ms * 1000000;
            memset(text, 'x', FETCH_SEND_BYTES);
        } else {
            bool over = now_ns(CLOCK_MONOTONIC) > waited[slot].deadline_ns;
            if (over)
                turn(0);
            if (ask(waited[slot].number, &known, &errors)) {
                done++;
                if (below(4)) /* else it is asked for the rest, or left behind */
                    waited[slot].number = 0;
            } else if (!known) {
                waited[slot].number = 0;
            } else if (over) {
                fail("a fetch without an end");
            }
        }
        turn(below(8) ? 0 : 1);
    }
    for (int i = 0; i < DEADLINE_MS + 50; i++)
        turn(1);
    if (fetch_step() != -1)
        fail("a fetch goes on after its deadline");
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    if (waits > calls / 100) { /* a lock of the kernel's may be held by a server's half of a connection */
        fprintf(stderr, "%ld of %ld calls waited\n", waits, calls);
        abort();
    }
    printf("%ld begun, %ld refused, %ld done, %ld with an error\n", begun, refused, done, errors);
    return 0;
}
