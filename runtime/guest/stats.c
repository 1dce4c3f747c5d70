/* hyper-read: many small kernel files in one answer, as they are. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TOTAL_BYTES (1 << 20) /* of file data in one answer: escaped at most six times as much */

static int open_in(int root, const char *path, uint64_t flags, uint64_t resolve)
{
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve};
    return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

static const char *error_name(int error)
{
    switch (error) {
    case ENOENT: return "ENOENT";
    case ENOTDIR: return "ENOTDIR";
    case EACCES: return "EACCES";
    case EPERM: return "EPERM";
    case ELOOP: return "ELOOP";
    case EINVAL: return "EINVAL";
    case EIO: return "EIO";
    case EAGAIN: return "EAGAIN";
    case ENODEV: return "ENODEV";
    case ENXIO: return "ENXIO";
    case EOPNOTSUPP: return "EOPNOTSUPP";
    case ESRCH: return "ESRCH";
    case EISDIR: return "EISDIR";
    default: return "EUNKNOWN";
    }
}

static void put_path(struct buffer *out, const char *path)
{
    buffer_text(out, "{\"path\": ");
    buffer_quoted(out, path, strlen(path));
}

static void put_error(struct buffer *out, int error)
{
    buffer_text(out, ", \"error\": \"");
    buffer_text(out, error_name(error));
    buffer_text(out, "\"}");
}

static bool is_kernel_text(int fd, bool stats)
{
    struct stat status;
    struct statfs system;
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode))
        return false;
    if (!stats)
        return true;
    /* By file system, not by name: a symlink or a mount must not lead elsewhere. */
    return fstatfs(fd, &system) == 0 && (system.f_type == PROC_SUPER_MAGIC || system.f_type == SYSFS_MAGIC ||
                                         system.f_type == CGROUP2_SUPER_MAGIC);
}

static void put_file(struct buffer *out, const char *path, const struct read_request *request, int64_t *budget)
{
    static char data[262144 + 1];
    /* O_NONBLOCK: some files of /proc would wait for news. No magic links: /proc/PID/root is not below /proc. */
    int fd = open_in(AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, request->stats ? RESOLVE_NO_MAGICLINKS : 0);
    int error = fd < 0 ? errno : is_kernel_text(fd, request->stats) ? 0 : EINVAL;
    int64_t limit = request->max_bytes < *budget ? request->max_bytes : *budget, length = 0;
    /* One byte more than the limit tells a file that ends there from one that goes on. */
    while (!error && length <= limit) {
        ssize_t got = read(fd, data + length, (size_t)(limit + 1 - length));
        if (got < 0 && errno != EINTR)
            error = errno;
        else if (got == 0)
            break;
        else if (got > 0)
            length += got;
    }
    if (fd >= 0)
        close(fd);
    put_path(out, path);
    if (error) {
        put_error(out, error);
        return;
    }
    bool truncated = length > limit;
    length = truncated ? limit : length;
    *budget -= length;
    buffer_text(out, ", \"data\": ");
    buffer_quoted(out, data, (size_t)length);
    buffer_text(out, truncated ? ", \"truncated\": true}" : "}");
}

static void put_number(struct buffer *out, const char *name, uint64_t value)
{
    buffer_text(out, name);
    buffer_int(out, value > INT64_MAX ? INT64_MAX : (int64_t)value);
}

static void put_statvfs(struct buffer *out, const char *path, int root)
{
    struct statvfs info;
    while (*path == '/')
        path++;
    /* RESOLVE_IN_ROOT: the container's symlinks mean what they mean in there. */
    int fd = root < 0 ? -1 : open_in(root, *path ? path : ".", O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    int error = root < 0 ? ESRCH : fd < 0 || fstatvfs(fd, &info) != 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    if (error) {
        put_error(out, error);
        return;
    }
    put_number(out, ", \"bsize\": ", info.f_bsize);
    put_number(out, ", \"frsize\": ", info.f_frsize);
    put_number(out, ", \"blocks\": ", info.f_blocks);
    put_number(out, ", \"bfree\": ", info.f_bfree);
    put_number(out, ", \"bavail\": ", info.f_bavail);
    put_number(out, ", \"files\": ", info.f_files);
    put_number(out, ", \"ffree\": ", info.f_ffree);
    buffer_text(out, "}");
}

void stats_read(const struct read_request *request, struct buffer *out)
{
    int64_t budget = TOTAL_BYTES;
    char path[32];
    int root = -1;
    buffer_text(out, "{\"time_ns\": ");
    buffer_int(out, now_ns(CLOCK_REALTIME));
    buffer_text(out, ", \"uptime_ns\": ");
    buffer_int(out, now_ns(CLOCK_BOOTTIME));
    buffer_text(out, ", \"files\": [");
    for (int i = 0; i < request->files_count; i++) {
        buffer_text(out, i ? ", " : "");
        put_file(out, request->files[i], request, &budget);
    }
    buffer_text(out, "], \"statvfs\": [");
    if (container.state == RUNNING && request->statvfs_count) {
        snprintf(path, sizeof path, "/proc/%d/root", (int)container.pid);
        root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    }
    for (int i = 0; i < request->statvfs_count; i++) {
        buffer_text(out, i ? ", " : "");
        put_path(out, request->statvfs[i]);
        put_statvfs(out, request->statvfs[i], root);
    }
    buffer_text(out, "]}");
    if (root >= 0)
        close(root);
}
