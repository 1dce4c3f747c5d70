/* Unpacking a tar archive from stdin into a directory of the container; nothing leaves that directory. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define BLOCK 512
#define NAME 4096
#define EXTENDED (1 << 20)

static int root;

struct entry {
    char name[NAME], link[NAME], type;
    int64_t size, uid, gid, mtime;
    mode_t mode;
    dev_t device;
    char xattrs[65536]; /* of the pax header: pairs of a name with NUL, a length, bytes */
    size_t xattrs_bytes;
};
static struct entry entry;

static void stop(const char *what, const char *path) __attribute__((noreturn));
static void stop(const char *what, const char *path)
{
    dprintf(2, "%s %.300s: %s\n", what, path, strerror(errno));
    _exit(1);
}

static void wrong(const char *what) __attribute__((noreturn));
static void wrong(const char *what)
{
    dprintf(2, "the archive is not right: %s\n", what);
    _exit(1);
}

static bool take(char *data, size_t size, bool may_end)
{
    size_t have = 0;
    while (have < size) {
        ssize_t got = read(0, data + have, size - have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            stop("cannot read", "the archive");
        if (got == 0 && have == 0 && may_end)
            return false;
        if (got == 0)
            wrong("it is cut");
        have += (size_t)got;
    }
    return true;
}

static int64_t number(const char *text, size_t size)
{
    int64_t value = 0;
    if ((unsigned char)text[0] & 0x80) { /* GNU's binary form */
        value = text[0] & 0x3f;
        for (size_t i = 1; i < size; i++) {
            if (value > INT64_MAX >> 8)
                wrong("a number is too large");
            value = value << 8 | (unsigned char)text[i];
        }
        return value;
    }
    for (size_t i = 0; i < size && text[i]; i++)
        if (text[i] >= '0' && text[i] <= '7')
            value = value << 3 | (text[i] - '0');
        else if (text[i] != ' ')
            wrong("a number has no octal digits");
    return value;
}

/* Of a pax header. strtoll() alone would take spaces, newlines and a plus before the digits, and anything after them. */
static int64_t decimal(const char *text, const char *ends)
{
    char *end;
    errno = 0;
    int64_t value = strtoll(text, &end, 10);
    if (*text < '0' || *text > '9' || errno || !strchr(ends, *end))
        wrong("a pax header has no number where one belongs");
    return value;
}

/* Records of a pax header: "LENGTH KEY=VALUE\n". */
static void read_pax(char *at, size_t size)
{
    for (char *end = at + size; at < end && *at;) {
        char *key, *value, *next;
        unsigned long length = strtoul(at, &key, 10);
        if (*at < '0' || *at > '9' || *key != ' ' || length < 5 || length > (size_t)(end - at) ||
            key + 1 >= at + length || at[length - 1] != '\n')
            wrong("a pax header has a wrong length");
        next = at + length;
        next[-1] = '\0';
        value = strchr(++key, '=');
        if (!value)
            wrong("a pax header has no value");
        *value++ = '\0';
        size_t bytes = (size_t)(next - 1 - value);
        if (strcmp(key, "path") == 0)
            snprintf(entry.name, NAME, "%s", value);
        else if (strcmp(key, "linkpath") == 0)
            snprintf(entry.link, NAME, "%s", value);
        else if (strcmp(key, "size") == 0)
            entry.size = decimal(value, "");
        else if (strcmp(key, "uid") == 0)
            entry.uid = decimal(value, "");
        else if (strcmp(key, "gid") == 0)
            entry.gid = decimal(value, "");
        else if (strcmp(key, "mtime") == 0 && *value != '-') /* before 1970 is 1970, as the header has it */
            entry.mtime = decimal(value, ".");
        else if (strncmp(key, "SCHILY.xattr.", 13) == 0 &&
                 entry.xattrs_bytes + strlen(key) + sizeof bytes + bytes < sizeof entry.xattrs) {
            char *to = stpcpy(entry.xattrs + entry.xattrs_bytes, key + 13) + 1;
            memcpy(to, &bytes, sizeof bytes);
            memcpy(to + sizeof bytes, value, bytes);
            entry.xattrs_bytes = (size_t)(to + sizeof bytes + bytes - entry.xattrs);
        }
        at = next;
    }
}

static void skip(int64_t size)
{
    static char nothing[32768];
    for (int64_t left = (size + BLOCK - 1) / BLOCK * BLOCK; left > 0;) {
        size_t part = left < (int64_t)sizeof nothing ? (size_t)left : sizeof nothing;
        take(nothing, part, false);
        left -= (int64_t)part;
    }
}

/* The next entry's header into `entry`; false at the end. */
static bool next_entry(void)
{
    static char block[BLOCK + 1], more[EXTENDED + BLOCK];
    entry.name[0] = entry.link[0] = '\0';
    entry.size = entry.uid = entry.gid = entry.mtime = -1;
    entry.xattrs_bytes = 0;
    for (;;) {
        if (!take(block, BLOCK, true))
            return false;
        unsigned sum = 8 * ' ';
        for (int i = 0; i < BLOCK; i++)
            sum += i >= 148 && i < 156 ? 0 : (unsigned char)block[i];
        if (sum == 8 * ' ') { /* a block of zeros */
            while (take(more, BLOCK, true))
                ; /* what may follow is nothing to us, but its sender must get rid of it */
            return false;
        }
        if (number(block + 148, 8) != sum)
            wrong("a header's checksum does not fit");
        char type = block[156];
        int64_t size = number(block + 124, 12);
        if (type == 'x' || type == 'L' || type == 'K' || type == 'g') {
            if (size < 0 || size > EXTENDED)
                wrong("a header is too long");
            take(more, (size_t)(size + BLOCK - 1) / BLOCK * BLOCK, false);
            more[size] = '\0';
            if (type == 'x')
                read_pax(more, (size_t)size);
            else if (type != 'g')
                snprintf(type == 'L' ? entry.name : entry.link, NAME, "%.4095s", more);
            continue;
        }
        entry.type = type ? type : '0';
        if (!entry.name[0] && memcmp(block + 257, "ustar\0", 6) == 0 && block[345])
            snprintf(entry.name, NAME, "%.155s/%.100s", block + 345, block);
        else if (!entry.name[0])
            snprintf(entry.name, NAME, "%.100s", block);
        if (!entry.link[0])
            snprintf(entry.link, NAME, "%.100s", block + 157);
        entry.size = entry.size < 0 ? size : entry.size;
        entry.uid = entry.uid < 0 ? number(block + 108, 8) : entry.uid;
        entry.gid = entry.gid < 0 ? number(block + 116, 8) : entry.gid;
        entry.mtime = entry.mtime < 0 ? number(block + 136, 12) : entry.mtime;
        entry.mode = (mode_t)(number(block + 100, 8) & 07777);
        entry.device = makedev((unsigned)number(block + 329, 8), (unsigned)number(block + 337, 8));
        return true;
    }
}

/* The directory that holds `name`, made if it is missing; the last part of the name is put in `base`. */
static int parent_of(char *name, const char **base)
{
    char *last = strrchr(name, '/');
    *base = last ? last + 1 : name;
    if (!last)
        return fcntl(root, F_DUPFD_CLOEXEC, 3);
    for (char *at = name; (at = strchr(at, '/')); *at++ = '/') {
        *at = '\0';
        struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_BENEATH};
        int fd = (int)syscall(SYS_openat2, root, name, &how, sizeof how);
        if (fd < 0 && errno == ENOENT && mkdirat(root, name, 0755) == 0)
            fd = (int)syscall(SYS_openat2, root, name, &how, sizeof how);
        if (fd < 0)
            stop("cannot unpack below", name);
        if (at == last) {
            *at = '/';
            return fd;
        }
        close(fd);
    }
    return -1;
}

static void finish_file(int fd)
{
    const struct timespec times[2] = {{.tv_sec = entry.mtime}, {.tv_sec = entry.mtime}};
    if (fchown(fd, (uid_t)entry.uid, (gid_t)entry.gid) != 0 || fchmod(fd, entry.mode) != 0)
        stop("cannot give its owner and mode to", entry.name);
    for (size_t at = 0; at < entry.xattrs_bytes;) {
        const char *name = entry.xattrs + at;
        size_t bytes;
        at += strlen(name) + 1;
        memcpy(&bytes, entry.xattrs + at, sizeof bytes);
        at += sizeof bytes;
        fsetxattr(fd, name, entry.xattrs + at, bytes, 0);
        at += bytes;
    }
    futimens(fd, times);
}

static void unpack_file(int parent, const char *base)
{
    static char data[32768];
    int fd = openat(parent, base, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
    if (fd < 0)
        stop("cannot write", entry.name);
    for (int64_t left = entry.size; left > 0;) {
        size_t part = left < (int64_t)sizeof data ? (size_t)left : sizeof data;
        take(data, part, false);
        for (size_t done = 0; done < part;) {
            ssize_t wrote = write(fd, data + done, part - done);
            if (wrote < 0)
                stop("cannot write", entry.name);
            done += (size_t)wrote;
        }
        left -= (int64_t)part;
    }
    take(data, (size_t)(-entry.size & (BLOCK - 1)), false);
    finish_file(fd);
    close(fd);
}

static void unpack_directory(int parent, const char *base)
{
    struct stat status;
    if (mkdirat(parent, base, 0700) != 0 && errno != EEXIST)
        stop("cannot make the directory", entry.name);
    struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_BENEATH};
    int fd = (int)syscall(SYS_openat2, parent, base, &how, sizeof how);
    if (fd < 0 || fstat(fd, &status) != 0)
        stop("cannot make the directory", entry.name);
    finish_file(fd);
    close(fd);
}

static void unpack_special(int parent, const char *base)
{
    if (entry.type == '1') {
        char copy[NAME];
        const char *target;
        snprintf(copy, sizeof copy, "%s", entry.link);
        int from = parent_of(copy, &target);
        if (linkat(from, target, parent, base, 0) != 0)
            stop("cannot make the hard link", entry.name);
        close(from);
        return;
    }
    mode_t type = entry.type == '3' ? S_IFCHR : entry.type == '4' ? S_IFBLK : S_IFIFO;
    if (entry.type == '2' ? symlinkat(entry.link, parent, base) != 0
                          : mknodat(parent, base, type | entry.mode, entry.device) != 0)
        stop("cannot make", entry.name);
    if (fchownat(parent, base, (uid_t)entry.uid, (gid_t)entry.gid, AT_SYMLINK_NOFOLLOW) != 0)
        stop("cannot give its owner to", entry.name);
}

/* Names as they are kept: no leading or trailing slashes, no "."; with ".." it is refused. */
static void tidy(char *name)
{
    char out[NAME] = "", *rest = name, *part, *at = out;
    while ((part = strsep(&rest, "/"))) {
        if (strcmp(part, "..") == 0)
            wrong("a name has a \"..\"");
        if (*part && strcmp(part, ".") != 0) {
            at = stpcpy(at > out ? stpcpy(at, "/") : at, part);
        }
    }
    memcpy(name, out, sizeof out);
}

void unarchive_run(int directory)
{
    root = directory;
    umask(0);
    while (next_entry()) {
        const char *base;
        if (entry.size < 0 || !strchr("0123456", entry.type))
            wrong("an entry is of a kind that is not taken");
        if (entry.size > INT64_MAX - BLOCK)
            wrong("a number is too large");
        tidy(entry.name);
        if (entry.type == '1')
            tidy(entry.link);
        if (!entry.name[0]) { /* the directory itself */
            skip(entry.size);
            continue;
        }
        int parent = parent_of(entry.name, &base);
        if (entry.type == '5') {
            unpack_directory(parent, base);
            skip(entry.size);
        } else {
            /* A file that is mounted there (hosts, resolv.conf) cannot be replaced, but written. */
            if (unlinkat(parent, base, 0) != 0 && errno != ENOENT && (errno != EBUSY || entry.type != '0'))
                stop("cannot replace", entry.name);
            if (entry.type == '0')
                unpack_file(parent, base);
            else
                unpack_special(parent, base);
        }
        close(parent);
    }
    _exit(0);
}
