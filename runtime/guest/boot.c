/* From the kernel's hand-over to a guest that can be talked to: mounts, modules, cgroups, loopback, ports. */
#include "hyper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define IMAGE_DISK "vda"
#define IMAGE_READ_AHEAD_KB "512"
#define PAGE 4096
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* of linux/mman.h; Linux 5.14 */
#endif

void say(const char *format, ...)
{
    char text[512];
    va_list list;
    va_start(list, format);
    int length = vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (length > (int)sizeof text - 1)
        length = sizeof text - 1;
    dprintf(2, "hyper: %.*s\n", length, text);
}

bool write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t length = (ssize_t)strlen(text);
    bool good = write(fd, text, (size_t)length) == length;
    int error = errno;
    close(fd);
    errno = error;
    return good;
}

ssize_t read_small_file(const char *path, char *data, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t length = read(fd, data, size - 1);
    int error = errno;
    close(fd);
    errno = error;
    data[length < 0 ? 0 : length] = '\0';
    return length;
}

static void mount_on(const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
    mkdir(target, 0755);
    if (mount(source, target, type, flags, data) != 0 && errno != EBUSY) /* EBUSY: the kernel did it (devtmpfs) */
        say("cannot mount %s on %s: %s", type, target, strerror(errno));
}

void boot_mounts(void)
{
    mount_on("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_on("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_on("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    /* nsdelegate: a namespace of the container's may not lift the limits of the group that it begins with. */
    mount_on("cgroup2", CGROUP_ROOT, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "nsdelegate");
    mount_on("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=4m");
    mkdir(RUN_DIR, 0755);
    mkdir(ETC_DIR, 0755);
    /* Without a console the kernel hands over no descriptors, and the first files opened would become 0, 1 and 2. */
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    if (fd < 0)
        fd = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3 && fd >= 0; i++)
        if (fd != i && fcntl(i, F_GETFD) < 0)
            dup2(fd, i);
    if (fd > 2)
        close(fd);
}

/* /modules/order: one file name a line, in load order. A kernel with everything built in has no such file. */
void boot_modules(void)
{
    static char order[16384];
    if (read_small_file("/modules/order", order, sizeof order) <= 0)
        return;
    char *rest = order, *name;
    while ((name = strsep(&rest, "\n"))) {
        char path[256];
        if (!*name || strchr(name, '/') || (size_t)snprintf(path, sizeof path, "/modules/%s", name) >= sizeof path)
            continue;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST))
            say("cannot load module %s: %s", name, strerror(errno));
        if (fd >= 0)
            close(fd);
        unlink(path); /* the initramfs is memory: what is loaded need not be kept twice */
    }
}

void boot_cgroups(void)
{
    char available[256], *rest = available, *name;
    if (read_small_file(CGROUP_ROOT "/cgroup.controllers", available, sizeof available) < 0) {
        say("no cgroup v2: %s", strerror(errno));
        return;
    }
    while ((name = strsep(&rest, " \n"))) {
        char word[64];
        if (*name && (size_t)snprintf(word, sizeof word, "+%s", name) < sizeof word &&
            !write_file(CGROUP_ROOT "/cgroup.subtree_control", word))
            say("cannot enable cgroup controller %s: %s", name, strerror(errno));
    }
    if (mkdir(CONTAINER_CGROUP, 0755) != 0 && errno != EEXIST)
        say("cannot make %s: %s", CONTAINER_CGROUP, strerror(errno));
}

void boot_network(void)
{
    /* The host lets no IPv6 pass. Left on, each start would begin to look for neighbours and routers; lo keeps ::1. */
    write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    write_file("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1");
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) != 0)
        say("cannot bring up lo: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
}

/* An image's files are mostly programs and libraries, mapped and touched here and there: fewer, longer reads. */
void boot_disks(void)
{
    if (!write_file("/sys/block/" IMAGE_DISK "/queue/read_ahead_kb", IMAGE_READ_AHEAD_KB))
        say("cannot set the read-ahead of " IMAGE_DISK ": %s", strerror(errno));
}

void own_memory(void)
{
    static unsigned char present[1024];
    char line[512];
    uintptr_t from, to;
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps && fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx rw", &from, &to) != 2 || !strstr(line, " rw"))
            continue;
        for (; from < to; from += sizeof present * PAGE) {
            size_t size = to - from < sizeof present * PAGE ? to - from : sizeof present * PAGE;
            if (mincore((void *)from, size, present) != 0)
                break;
            for (size_t page = 0; page < size / PAGE; page++)
                if (present[page] & 1)
                    madvise((void *)(from + page * PAGE), PAGE, MADV_POPULATE_WRITE);
        }
    }
    if (maps)
        fclose(maps);
}

static void look_for_ports(const char *const *names, int *fds, int count)
{
    DIR *directory = opendir("/sys/class/virtio-ports");
    if (!directory)
        return;
    struct dirent *entry;
    while ((entry = readdir(directory))) {
        char path[320], name[64];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        if (read_small_file(path, name, sizeof name) <= 0)
            continue;
        name[strcspn(name, "\n")] = '\0';
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        for (int i = 0; i < count; i++)
            if (fds[i] < 0 && strcmp(name, names[i]) == 0)
                fds[i] = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    closedir(directory);
}

void boot_ports(const char *const *names, int *fds, int count, int64_t deadline_ns)
{
    for (;;) {
        int found = 0;
        look_for_ports(names, fds, count);
        for (int i = 0; i < count; i++)
            found += fds[i] >= 0;
        if (found == count)
            return;
        if (now_ns(CLOCK_MONOTONIC) > deadline_ns)
            break;
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    for (int i = 0; i < count; i++)
        if (fds[i] < 0)
            say("no virtio-serial port %s", names[i]);
}
