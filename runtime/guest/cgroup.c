/* The container's cgroup: limits, counters, and killing all that is in it. */
#include "hyper.h"

#include <errno.h>
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

bool cgroup_renew(void)
{
    return rmdir(CONTAINER_CGROUP) == 0 && mkdir(CONTAINER_CGROUP, 0755) == 0;
}

static bool set_limit(const char *file, int64_t value, struct fault *fault)
{
    char path[96], text[32] = "max";
    snprintf(path, sizeof path, CONTAINER_CGROUP "/%s", file);
    if (value >= 0)
        snprintf(text, sizeof text, "%lld", (long long)value);
    if (write_file(path, text) || (value < 0 && errno == ENOENT))
        return true;
    return refuse(fault, GENERIC, "cgroup: cannot set %s to %s: %s", file, text, strerror(errno));
}

bool cgroup_set_limits(const struct start_request *request, struct fault *fault)
{
    char text[64];
    if (request->cpu_quota_us >= 0)
        snprintf(text, sizeof text, "%lld %lld", (long long)request->cpu_quota_us, (long long)request->cpu_period_us);
    else
        snprintf(text, sizeof text, "max %lld", (long long)request->cpu_period_us);
    if (!write_file(CONTAINER_CGROUP "/cpu.max", text) && request->cpu_quota_us >= 0)
        return refuse(fault, GENERIC, "cgroup: cannot set cpu.max to %s: %s", text, strerror(errno));
    return set_limit("memory.max", request->memory_max, fault) &&
           set_limit("memory.swap.max", request->memory_swap_max, fault) &&
           set_limit("pids.max", request->pids_max, fault) &&
           set_limit("cpu.weight", request->cpu_weight < 0 ? 100 : request->cpu_weight, fault);
}
