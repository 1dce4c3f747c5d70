/* The container's cgroup: limits, counters, and killing all that is in it. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int64_t read_counter(const char *text, const char *name)
{
    const char *at = strstr(text, name); /* "oom_kill 3\n"; a newline before tells it from longer names */
    return at ? strtoll(at + strlen(name), NULL, 10) : 0;
}

int64_t container_oom_kills(void)
{
    char text[512];
    if (read_small_file(CONTAINER_CGROUP "/memory.events", text, sizeof text) < 0)
        return 0;
    return read_counter(text, "\noom_kill ");
}

struct oom_layers container_oom_layers(void)
{
    char text[512], vmstat[16384];
    int64_t kills, limit = 0, all = 0;
    if (read_small_file(CONTAINER_CGROUP "/memory.events", text, sizeof text) < 0)
        return (struct oom_layers){0};
    kills = read_counter(text, "\noom_kill ");
    if (kills > 0 && read_small_file("/proc/vmstat", vmstat, sizeof vmstat) > 0)
        all = read_counter(vmstat, "\noom_kill ");
    limit = read_counter(text, "\noom ");
    if (limit > kills)
        limit = kills;
    return (struct oom_layers){.container = limit, .guest = (all > kills ? all : kills) - limit};
}

bool cgroup_populated(void)
{
    char text[256];
    return read_small_file(CONTAINER_CGROUP "/cgroup.events", text, sizeof text) > 0 &&
           strstr(text, "populated 1") != NULL;
}

void cgroup_kill(void)
{
    if (!write_file(CONTAINER_CGROUP "/cgroup.kill", "1") && container.state == RUNNING)
        kill(container.pid, SIGKILL); /* its PID namespace goes with it */
}

enum limit { CPU_MAX, MEMORY_MAX, SWAP_MAX, PIDS_MAX, CPU_WEIGHT, LIMITS };
static struct {
    const char *file, *at_first; /* what a new group has */
    int fd;                      /* -1: there is no such file */
    char now[64];
} limits[LIMITS] = {
    {.file = "cpu.max", .at_first = "max 100000"}, {.file = "memory.max", .at_first = "max"},
    {.file = "memory.swap.max", .at_first = "max"}, {.file = "pids.max", .at_first = "max"},
    {.file = "cpu.weight", .at_first = "100"},
};

void cgroup_prepare(void)
{
    for (int i = 0; i < LIMITS; i++) {
        char path[96];
        if (limits[i].fd > 0)
            close(limits[i].fd);
        snprintf(path, sizeof path, CONTAINER_CGROUP "/%s", limits[i].file);
        limits[i].fd = open(path, O_WRONLY | O_CLOEXEC);
        strcpy(limits[i].now, limits[i].at_first);
    }
}

bool cgroup_renew(void)
{
    bool renewed = rmdir(CONTAINER_CGROUP) == 0 && mkdir(CONTAINER_CGROUP, 0755) == 0;
    int error = errno;
    cgroup_prepare();
    errno = error;
    return renewed;
}

static bool put_limit(enum limit limit, const char *text)
{
    ssize_t length = (ssize_t)strlen(text);
    if (limits[limit].fd < 0)
        errno = ENOENT;
    if (limits[limit].fd < 0 || (strcmp(limits[limit].now, text) != 0 &&
                                 write(limits[limit].fd, text, (size_t)length) != length))
        return false;
    strcpy(limits[limit].now, text);
    return true;
}

static bool set_limit(enum limit limit, int64_t value, struct fault *fault)
{
    char text[32] = "max";
    if (value >= 0)
        snprintf(text, sizeof text, "%lld", (long long)value);
    if (put_limit(limit, text) || (value < 0 && errno == ENOENT))
        return true;
    return refuse(fault, GENERIC, "cgroup: cannot set %s to %s: %s", limits[limit].file, text, strerror(errno));
}

bool cgroup_set_limits(const struct start_request *request, struct fault *fault)
{
    char text[64];
    if (request->cpu_quota_us >= 0)
        snprintf(text, sizeof text, "%lld %lld", (long long)request->cpu_quota_us, (long long)request->cpu_period_us);
    else
        snprintf(text, sizeof text, "max %lld", (long long)request->cpu_period_us);
    if (!put_limit(CPU_MAX, text) && request->cpu_quota_us >= 0)
        return refuse(fault, GENERIC, "cgroup: cannot set cpu.max to %s: %s", text, strerror(errno));
    return set_limit(MEMORY_MAX, request->memory_max, fault) &&
           set_limit(SWAP_MAX, request->memory_swap_max, fault) &&
           set_limit(PIDS_MAX, request->pids_max, fault) &&
           set_limit(CPU_WEIGHT, request->cpu_weight < 0 ? 100 : request->cpu_weight, fault);
}
