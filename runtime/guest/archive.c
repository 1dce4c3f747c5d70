/* What PID 1's children do instead of a program: files in and out as tar, and what a container has changed.
 *
 * Written is POSIX tar with pax headers where ustar does not suffice. Read is that, and GNU's long names. */
#include "hyper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define BLOCK 512
#define CHUNK 32768
#define NAME 4096
#define LINKS 4096
#define OCTAL_MAX 077777777777LL /* eleven digits */
#define VIEW RUN_DIR "/view"

struct header {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8], type, link[100], magic[8], user[32], group[32],
        major[8], minor[8], prefix[155], rest[12];
};
_Static_assert(sizeof(struct header) == BLOCK, "a tar header is one block");

static const struct spawn *spawned;
static char *excludes[MAX_ARGS]; /* the request's, copied: its memory is that of the next one */
static int excludes_count;

static void stop(const char *what, const char *path) __attribute__((noreturn));
static void stop(const char *what, const char *path)
{
    dprintf(2, "%s %s: %s\n", what, path, strerror(errno));
    _exit(1);
}

static int open_at(int directory, const char *path, uint64_t flags, uint64_t resolve)
{
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve};
    return (int)syscall(SYS_openat2, directory, path, &how, sizeof how);
}

/* --- writing */

static void put(const void *data, size_t size)
{
    for (const char *at = data; size > 0;) {
        ssize_t done = write(1, at, size);
        if (done < 0 && errno != EINTR)
            _exit(1); /* whoever read it has gone */
        at += done > 0 ? done : 0;
        size -= done > 0 ? (size_t)done : 0;
    }
}

static void put_padding(size_t size)
{
    static const char zero[BLOCK];
    put(zero, (BLOCK - size % BLOCK) % BLOCK);
}

static void put_header(const char *name, const char *link, char type, const struct stat *status, int64_t size)
{
    struct header header = {.type = type, .magic = "ustar\00000"};
    snprintf(header.mode, sizeof header.mode, "%07o", status->st_mode & 07777);
    snprintf(header.uid, sizeof header.uid, "%07o", status->st_uid > 07777777 ? 0 : status->st_uid);
    snprintf(header.gid, sizeof header.gid, "%07o", status->st_gid > 07777777 ? 0 : status->st_gid);
    snprintf(header.size, sizeof header.size, "%011llo", (long long)(size > OCTAL_MAX ? 0 : size));
    int64_t time = status->st_mtime < 0 || status->st_mtime > OCTAL_MAX ? 0 : status->st_mtime;
    snprintf(header.mtime, sizeof header.mtime, "%011llo", (long long)time);
    memcpy(header.name, name, strnlen(name, sizeof header.name));
    memcpy(header.link, link, strnlen(link, sizeof header.link));
    if (type == '3' || type == '4') {
        snprintf(header.major, sizeof header.major, "%07o", major(status->st_rdev) & 07777777);
        snprintf(header.minor, sizeof header.minor, "%07o", minor(status->st_rdev) & 07777777);
    }
    unsigned sum = 0;
    memset(header.sum, ' ', sizeof header.sum);
    for (size_t i = 0; i < sizeof header; i++)
        sum += ((unsigned char *)&header)[i];
    snprintf(header.sum, sizeof header.sum, "%06o", sum);
    put(&header, sizeof header);
}

static void pax(struct buffer *out, const char *key, const char *value, size_t size)
{
    /* "LENGTH KEY=VALUE\n", where LENGTH counts its own digits. */
    char head[400];
    size_t rest = strlen(key) + size + 3, length = rest, digits = 0;
    do {
        digits = (size_t)snprintf(head, sizeof head, "%zu", length);
        length = rest + digits;
    } while (digits != (size_t)snprintf(head, sizeof head, "%zu", length));
    buffer_bytes(out, head, (size_t)snprintf(head, sizeof head, "%zu %s=", length, key));
    buffer_bytes(out, value, size);
    buffer_text(out, "\n");
}

static void pax_number(struct buffer *out, const char *key, int64_t value)
{
    char text[24];
    pax(out, key, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)value));
}

/* An entry's header, with the pax header that it needs. `fd` is the file, for its attributes; -1: none to keep. */
static void put_entry(const char *name, const char *link, char type, const struct stat *status, int fd)
{
    static char names[65536], value[65536];
    struct buffer more = {.limit = 1 << 20};
    int64_t size = type == '0' ? status->st_size : 0;
    if (strlen(name) > 100)
        pax(&more, "path", name, strlen(name));
    if (strlen(link) > 100)
        pax(&more, "linkpath", link, strlen(link));
    if (size > OCTAL_MAX)
        pax_number(&more, "size", size);
    if (status->st_uid > 07777777)
        pax_number(&more, "uid", status->st_uid);
    if (status->st_gid > 07777777)
        pax_number(&more, "gid", status->st_gid);
    ssize_t length = fd < 0 ? 0 : flistxattr(fd, names, sizeof names);
    for (char *at = names; length > 0 && at < names + length; at += strlen(at) + 1) {
        char key[320];
        ssize_t got = strncmp(at, "trusted.", 8) == 0 ? -1 : fgetxattr(fd, at, value, sizeof value);
        snprintf(key, sizeof key, "SCHILY.xattr.%.255s", at);
        if (got >= 0)
            pax(&more, key, value, (size_t)got);
    }
    if (more.length && !more.failed) {
        struct stat plain = {.st_mode = 0644};
        put_header("pax", "", 'x', &plain, (int64_t)more.length);
        put(more.data, more.length);
        put_padding(more.length);
    }
    buffer_free(&more);
    put_header(name, link, type, status, size);
}

static void put_content(int fd, int64_t size)
{
    static char data[CHUNK];
    for (int64_t left = size; left > 0;) {
        ssize_t got = read(fd, data, left < CHUNK ? (size_t)left : CHUNK);
        if (got <= 0) { /* it has become shorter: its size is said already */
            memset(data, 0, sizeof data);
            got = left < CHUNK ? left : CHUNK;
        }
        put(data, (size_t)got);
        left -= got;
    }
    put_padding((size_t)(size % BLOCK));
}

static bool excluded(const char *name, const struct stat *status)
{
    for (int i = 0; i < excludes_count; i++)
        if (strcmp(excludes[i], name) == 0)
            return S_ISDIR(status->st_mode) || (S_ISREG(status->st_mode) && status->st_size == 0);
    return false;
}

static bool is_whiteout(const struct stat *status)
{
    return S_ISCHR(status->st_mode) && status->st_rdev == 0;
}

static bool is_opaque(int directory)
{
    char flag = 'n';
    return fgetxattr(directory, "trusted.overlay.opaque", &flag, 1) == 1 && flag == 'y';
}

/* The name that another entry of this archive has for the same file; NULL for the first. */
static const char *first_name(const char *name, const struct stat *status)
{
    static struct { dev_t device; ino_t inode; char *name; } known[LINKS];
    static int count;
    for (int i = 0; i < count; i++)
        if (known[i].device == status->st_dev && known[i].inode == status->st_ino)
            return known[i].name;
    if (count < LINKS && (known[count].name = strdup(name))) {
        known[count].device = status->st_dev;
        known[count++].inode = status->st_ino;
    }
    return NULL;
}

static void get_below(int directory, const char *name, bool layer);

/* One file of `parent`, which the archive calls `name`. */
static void get(int parent, const char *file, const char *name, bool layer)
{
    char target[NAME] = "";
    struct stat status;
    const char *first;
    if (fstatat(parent, file, &status, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno == ENOENT) /* gone since it was listed */
            return;
        stop("cannot look at", name);
    }
    if (layer && is_whiteout(&status)) {
        const char *base = strrchr(name, '/');
        int length = base ? (int)(base + 1 - name) : 0;
        struct stat plain = {.st_mode = 0600, .st_mtime = status.st_mtime};
        snprintf(target, sizeof target, "%.*s.wh.%s", length, name, name + length);
        put_entry(target, "", '0', &plain, -1);
    } else if (layer && excluded(name, &status)) {
        return;
    } else if (S_ISDIR(status.st_mode)) {
        int fd = openat(parent, file, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            stop("cannot open", name);
        snprintf(target, sizeof target, "%s/", name);
        put_entry(target, "", '5', &status, fd);
        if (layer && is_opaque(fd)) {
            struct stat plain = {.st_mode = 0600};
            snprintf(target, sizeof target, "%s/.wh..wh..opq", name);
            put_entry(target, "", '0', &plain, -1);
        }
        get_below(fd, name, layer);
    } else if (status.st_nlink > 1 && (first = first_name(name, &status))) {
        put_entry(name, first, '1', &status, -1);
    } else if (S_ISREG(status.st_mode)) {
        int fd = openat(parent, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            stop("cannot open", name);
        put_entry(name, "", '0', &status, fd);
        put_content(fd, status.st_size);
        close(fd);
    } else if (S_ISLNK(status.st_mode)) {
        if (readlinkat(parent, file, target, sizeof target - 1) < 0)
            stop("cannot read the link", name);
        put_entry(name, target, '2', &status, -1);
    } else if (!S_ISSOCK(status.st_mode)) {
        put_entry(name, "", S_ISFIFO(status.st_mode) ? '6' : S_ISCHR(status.st_mode) ? '3' : '4', &status, -1);
    }
}

/* Closes `directory`. */
static void get_below(int directory, const char *name, bool layer)
{
    DIR *list = fdopendir(directory);
    struct dirent *entry;
    if (!list)
        stop("cannot list", name);
    while ((entry = readdir(list))) {
        char path[NAME];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (snprintf(path, sizeof path, "%s%s%s", name, name[0] ? "/" : "", entry->d_name) >= (int)sizeof path) {
            errno = ENAMETOOLONG;
            stop("cannot archive", path);
        }
        get(dirfd(list), entry->d_name, path, layer);
    }
    closedir(list);
}

static void get_end(void) __attribute__((noreturn));
static void get_end(void)
{
    static const char zero[2 * BLOCK];
    put(zero, sizeof zero);
    _exit(0);
}

/* --- changes: what the upper directory of the overlay has that the image has not. "A", "C" or "D", path, NUL. */

static bool changed_below(int upper, int lower, const char *name);

static void tell(char kind, const char *name)
{
    put(&kind, 1);
    put("/", 1);
    put(name, strlen(name) + 1);
}

/* Whether anything was told. */
static bool changed(int parent, int lower, const char *file, const char *name)
{
    struct stat status;
    if (fstatat(parent, file, &status, AT_SYMLINK_NOFOLLOW) != 0)
        return false;
    if (is_whiteout(&status)) {
        tell('D', name);
        return true;
    }
    if (excluded(name, &status))
        return false;
    int below = lower < 0 ? -1 : open_at(lower, file, O_PATH | O_NOFOLLOW, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
    int there = below >= 0 || (errno == ELOOP && lower >= 0);
    if (S_ISDIR(status.st_mode)) {
        int fd = openat(parent, file, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        /* What was removed and made anew hides all that the image had there. */
        bool any = fd >= 0 && changed_below(fd, is_opaque(fd) ? -1 : below, name);
        if (there && !any)
            return false;
    }
    tell(there ? 'C' : 'A', name);
    if (below >= 0)
        close(below);
    return true;
}

/* Closes `upper`. An empty directory counts: only its own attributes were changed. */
static bool changed_below(int upper, int lower, const char *name)
{
    DIR *list = fdopendir(upper);
    struct dirent *entry;
    bool any = false, empty = true;
    if (!list)
        stop("cannot list", name);
    while ((entry = readdir(list))) {
        char path[NAME];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        empty = false;
        if (snprintf(path, sizeof path, "%s%s%s", name, name[0] ? "/" : "", entry->d_name) < (int)sizeof path)
            any |= changed(dirfd(list), lower, entry->d_name, path);
    }
    closedir(list);
    return any || empty;
}

/* The disks once more, in a namespace of our own: the container cannot have put anything over them. */
static int open_disks(int *lower)
{
    mkdir(VIEW, 0700);
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", VIEW, "tmpfs", 0, "size=64k") != 0 || mkdir(VIEW "/image", 0700) != 0 ||
        mkdir(VIEW "/writable", 0700) != 0 ||
        mount("/dev/vda", VIEW "/image", "erofs", MS_RDONLY | MS_NODEV, NULL) != 0 ||
        mount("/dev/vdb", VIEW "/writable", "ext4", MS_NODEV | MS_NOATIME, NULL) != 0)
        child_fail(spawned->report, GENERIC, "cannot reach the container's disks: %s", strerror(errno));
    *lower = open(VIEW "/image", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int upper = open(VIEW "/writable/upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (upper < 0)
        child_fail(spawned->report, GENERIC, "cannot open the writable layer: %s", strerror(errno));
    return upper;
}

static void keep_excludes(void)
{
    for (int i = 1; i < spawned->process->args_count; i++)
        if (!(excludes[excludes_count++] = strdup(spawned->process->args[i])))
            child_fail(spawned->report, GENERIC, "no memory for what is to be left out");
}

/* It works: the session has begun, and the control port has its next request, over this one. */
static void begun(void)
{
    close(spawned->report);
    shared_forget();
}

void archive_run(const struct spawn *spawn)
{
    const char *path = spawn->process->args[0];
    char copy[NAME], *base;
    struct stat status;
    int lower = -1;
    spawned = spawn;
    close_others(spawn->report);
    if (spawn->process->builtin == BUILTIN_IDLE) {
        begun();
        for (;;)
            pause();
    }
    if (spawn->process->builtin == BUILTIN_CHANGES || spawn->process->builtin == BUILTIN_LAYER) {
        int upper = open_disks(&lower);
        bool changes = spawn->process->builtin == BUILTIN_CHANGES;
        keep_excludes();
        begun();
        if (changes) {
            changed_below(upper, lower, "");
            _exit(0);
        }
        get_below(upper, "", true);
        get_end();
    }
    if (spawn->process->builtin == BUILTIN_PUT) {
        int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (directory < 0)
            child_fail(spawn->report, NOT_FOUND, "%s: %s", path, strerror(errno));
        begun();
        unarchive_run(directory);
    }
    /* The parent may be reached over symbolic links; what is asked for itself is taken as it is. */
    snprintf(copy, sizeof copy, "%s", path);
    size_t length = strlen(copy);
    while (length > 1 && copy[length - 1] == '/')
        copy[--length] = '\0';
    base = strrchr(copy, '/');
    *base++ = '\0';
    bool whole = !*base || strcmp(base, ".") == 0 || strcmp(base, "..") == 0;
    int parent = open(whole ? path : copy[0] ? copy : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent < 0 || (!whole && fstatat(parent, base, &status, AT_SYMLINK_NOFOLLOW) != 0))
        child_fail(spawn->report, NOT_FOUND, "%s: %s", path, strerror(errno));
    begun();
    get(parent, whole ? "." : base, whole ? "." : base, false);
    get_end();
}
