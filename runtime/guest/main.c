/* PID 1 of a micro-VM: boot, then one loop over the ports, the container's output and its end. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORTS_DEADLINE_NS 10000000000LL
#define EVENTS 64

int64_t boot_ns;
static int epoll_fd = -1;
static struct port *control, stats;
static struct source children;

int64_t now_ns(int clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

bool source_open(struct source *source, int fd)
{
    *source = (struct source){.fd = fd};
    if (fd < 0)
        return false;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLET, .data.ptr = source};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

void source_close(struct source *source)
{
    if (source->fd >= 0)
        close(source->fd); /* the last descriptor of the file: epoll forgets it */
    *source = (struct source){.fd = -1};
}

int source_release(struct source *source)
{
    int fd = source->fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    *source = (struct source){.fd = -1};
    return fd;
}

/* A place of each small size, so that one is found where one would have to be mapped: the last is never given back. */
static void heap_prepare(void)
{
    static void *volatile kept[64];
    size_t count = 0;
    for (size_t size = 12; size < 4096; size += size < 192 ? 16 : size / 8) {
        void *given = malloc(size);
        kept[count] = malloc(size);
        count += kept[count] != NULL && count + 1 < sizeof kept / sizeof *kept;
        free(given);
    }
    buffer_prepare();
}

static void reap(void)
{
    struct signalfd_siginfo ignored[8];
    while (read(children.fd, ignored, sizeof ignored) > 0)
        ;
    children.readable = false;
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        container_exited(pid, status);
}

static void loop(void)
{
    struct epoll_event events[EVENTS];
    int sleep_ms = 0;
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS, sleep_ms);
        for (int i = 0; i < count; i++) {
            struct source *source = events[i].data.ptr;
            uint32_t end = events[i].events & (EPOLLHUP | EPOLLERR);
            source->readable |= (events[i].events & (EPOLLIN | EPOLLPRI)) || end;
            source->writable |= (events[i].events & EPOLLOUT) || end;
        }
        /* A turn for each: whoever has more to do comes again after the others. */
        if (children.readable)
            reap();
        int limit_ms = container_step(); /* before the pumps: it gives them answers and events to carry */
        int fetch_ms = fetch_step();
        bool more = fetch_pump();
        more |= port_pump(&stats);
        more |= port_pump(control);
        more |= streams_pump();
        more |= log_pump();
        if (container.state == EXITED)
            limit_ms = container_step(); /* the pumps may have carried the last of it */
        if (fetch_ms >= 0 && (limit_ms < 0 || fetch_ms < limit_ms))
            limit_ms = fetch_ms;
        sleep_ms = more ? 0 : limit_ms;
    }
}

int main(int count, char **arguments)
{
    if (count > 1 && strcmp(arguments[1], "rehearse") == 0)
        return rehearse(arguments[0]);

    static const char *const names[] = {"hyper.control", "hyper.stats", "hyper.streams", "hyper.log"};
    int fds[4] = {-1, -1, -1, -1};
    sigset_t set;

    boot_mounts();
    boot_modules();
    boot_cgroups();
    boot_network();
    network_prepare("eth0");
    boot_disks();

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    source_open(&children, signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));

    boot_ports(names, fds, 4, now_ns(CLOCK_MONOTONIC) + PORTS_DEADLINE_NS);
    boot_ns = now_ns(CLOCK_BOOTTIME);
    if (fds[0] < 0)
        say("no control port: nobody can start a container here");
    control = shared_memory(sizeof *control);
    port_open(control, fds[0], false);
    port_open(&stats, fds[1], true);
    streams_open(fds[2]);
    log_open(fds[3]);
    heap_prepare();
    commands_prepare();
    cgroup_prepare();
    container_prepare();
    own_memory();
    loop();
}
