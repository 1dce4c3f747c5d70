/* What a user namespace within the container may mount, and write: a line for each.
 *
 * As root of a user namespace of its own, with all other namespaces new, tries proc, sysfs and cgroup2 on a directory,
 * and then the limit of its control group. `tmpfs` tells whether any of it is possible at all. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PLACE "/tmp/nest"

static int put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC), error = errno;
    if (fd < 0)
        return error;
    error = write(fd, text, strlen(text)) < 0 ? errno : 0;
    close(fd);
    return error;
}

static void tell(const char *what, int error)
{
    printf("%s: %s\n", what, error ? strerror(error) : "works");
    fflush(stdout);
}

int main(void)
{
    static const char *const types[] = {"tmpfs", "proc", "sysfs", "cgroup2"};
    mkdir(PLACE, 0755);
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP) != 0) {
        tell("namespaces", errno);
        return 1;
    }
    put("/proc/self/setgroups", "deny");
    put("/proc/self/uid_map", "0 0 1");
    put("/proc/self/gid_map", "0 0 1");
    if (fork() != 0) {
        wait(NULL);
        return 0;
    }
    for (int i = 0; i < 4; i++)
        tell(types[i], mount("none", PLACE, types[i], 0, NULL) == 0 ? 0 : errno);
    tell("memory.max", put(PLACE "/memory.max", "max"));
    return 0;
}
