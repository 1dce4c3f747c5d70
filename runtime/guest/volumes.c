/* Volumes: disks and shared directories at paths of the container, and holding a disk still for a snapshot.
 *
 * A volume's content is a directory in its file system, not the root of it: so lost+found is not seen, and content is
 * there whole or not at all (made under another name, then renamed). */
#include "hyper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Of linux/fs.h and linux/mount.h, which some C libraries' sys/mount.h cannot stand beside it. */
#define FREEZE _IOWR('X', 119, int)
#define THAW _IOWR('X', 120, int)
#define OPEN_TREE_CLONE 1
#define MOVE_MOUNT_F_EMPTY_PATH 0x4
#define MOVE_MOUNT_T_SYMLINKS 0x10
#define SHARED "9p" /* the one file system that is not on a disk: directories and files of the host */
#define NEW ".new"
#define XATTRS 65536

static int report;

static void fail(const char *what, const char *path) __attribute__((noreturn));
static void fail(const char *what, const char *path)
{
    child_fail(report, GENERIC, "cannot %s %s: %s", what, path, strerror(errno));
}

/* --- the image's content of a path, into a new volume */

static void copy_xattrs(int from, int to)
{
    static char names[XATTRS], value[XATTRS];
    ssize_t length = flistxattr(from, names, sizeof names);
    for (char *name = names; length > 0 && name < names + length; name += strlen(name) + 1) {
        ssize_t size = strncmp(name, "trusted.", 8) == 0 ? -1 : fgetxattr(from, name, value, sizeof value);
        if (size >= 0 && fsetxattr(to, name, value, (size_t)size, 0) != 0 && errno != EOPNOTSUPP)
            fail("keep the attribute", name);
    }
}

static void copy_attributes(int from, int to, const struct stat *status, const char *name)
{
    const struct timespec times[2] = {status->st_atim, status->st_mtim};
    if (fchown(to, status->st_uid, status->st_gid) != 0 || fchmod(to, status->st_mode & 07777) != 0)
        fail("give its owner and mode to", name);
    copy_xattrs(from, to);
    futimens(to, times);
}

static void copy_file(int from_directory, int to_directory, const char *name, const struct stat *status)
{
    int from = openat(from_directory, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    int to = openat(to_directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (from < 0 || to < 0)
        fail("copy into the volume:", name);
    for (;;) {
        ssize_t done = sendfile(to, from, NULL, 1 << 20);
        if (done < 0)
            fail("copy into the volume:", name);
        if (done == 0)
            break;
    }
    copy_attributes(from, to, status, name);
    close(from);
    close(to);
}

static void copy_tree(int from, int to)
{
    struct dirent *entry;
    struct stat status;
    DIR *list = fdopendir(dup(from));
    if (!list)
        fail("list", "the image's directory");
    while ((entry = readdir(list))) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            continue;
        if (fstatat(from, name, &status, AT_SYMLINK_NOFOLLOW) != 0)
            fail("look at", name);
        if (S_ISDIR(status.st_mode)) {
            int below = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), made = -1;
            if (mkdirat(to, name, 0700) == 0)
                made = openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (below < 0 || made < 0)
                fail("copy into the volume:", name);
            copy_tree(below, made);
            copy_attributes(below, made, &status, name);
            close(below);
            close(made);
        } else if (S_ISREG(status.st_mode)) {
            copy_file(from, to, name, &status);
        } else {
            char target[4096] = "";
            if (S_ISLNK(status.st_mode) ? readlinkat(from, name, target, sizeof target - 1) < 0 ||
                                              symlinkat(target, to, name) != 0
                                        : mknodat(to, name, status.st_mode, status.st_rdev) != 0)
                fail("copy into the volume:", name);
            if (fchownat(to, name, status.st_uid, status.st_gid, AT_SYMLINK_NOFOLLOW) != 0)
                fail("give its owner to", name);
        }
    }
    closedir(list);
}

static void remove_tree(int directory, const char *name)
{
    int fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *list = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *entry;
    while (list && (entry = readdir(list)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            unlinkat(fd, entry->d_name, 0) != 0)
            remove_tree(fd, entry->d_name);
    if (list)
        closedir(list);
    unlinkat(directory, name, AT_REMOVEDIR);
}

/* Make the directory `name` of a volume: with what the root has at `path`, or empty. */
static void fill(int volume, const char *name, const char *root, const char *path, bool copy)
{
    struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
    struct stat status;
    int base = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int from = (int)syscall(SYS_openat2, base, path, &how, sizeof how);
    if (from < 0 && errno != ENOENT)
        fail("use as a volume's place:", path);
    remove_tree(volume, NEW); /* of a start that was interrupted */
    int to = mkdirat(volume, NEW, 0755) == 0 ? openat(volume, NEW, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (to < 0)
        fail("make a directory in the volume of", path);
    if (from >= 0 && fstat(from, &status) == 0) {
        if (copy)
            copy_tree(from, to);
        copy_attributes(from, to, &status, path);
        close(from);
    }
    if (syncfs(to) != 0 || renameat(volume, NEW, volume, name) != 0 || syncfs(to) != 0)
        fail("fill the volume of", path);
    close(to);
    close(base);
}

/* --- mounting */

/* All that the host shares is in one file system, which can be mounted once. */
static void mount_shared(const struct mount_request *mount_, const char *base)
{
    static bool mounted; /* in this child */
    if (mounted)
        return;
    if (mkdir(base, 0700) != 0 && errno != EEXIST)
        fail("make the directory", base);
    if (mount(mount_->device, base, mount_->type, MS_NODEV, mount_->options) != 0)
        fail("mount the host's directories for", mount_->path);
    mounted = true;
}

/* The place of a volume: a directory, or a file for a file. */
static void make_place(int tree, const char *path)
{
    struct stat status;
    char above[4096];
    if (fstat(tree, &status) != 0 || S_ISDIR(status.st_mode)) {
        make_parents(path);
        return;
    }
    snprintf(above, sizeof above, "%s", path);
    char *name = strrchr(above, '/');
    if (name != above) {
        *name = '\0';
        make_parents(above);
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0644);
    if (fd >= 0)
        close(fd);
}

void volumes_open(const struct start_request *start, const char *root, int *trees, int to)
{
    report = to;
    for (int i = 0; i < start->mounts_count; i++) {
        const struct mount_request *mount_ = &start->mounts[i];
        char base[64], path[128];
        if (strcmp(mount_->type, SHARED) == 0) {
            snprintf(base, sizeof base, RUN_DIR "/shared");
            mount_shared(mount_, base);
        } else {
            snprintf(base, sizeof base, RUN_DIR "/mount%d", i);
            mount_device(mount_->device, mount_->type, base, MS_NODEV | (mount_->device_read_only ? MS_RDONLY : 0),
                         mount_->options, mount_->remount);
            int volume = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            if (!mount_->device_read_only && faccessat(volume, mount_->directory, F_OK, AT_SYMLINK_NOFOLLOW) != 0)
                fill(volume, mount_->directory, root, mount_->path, mount_->copy);
            close(volume);
        }
        snprintf(path, sizeof path, "%s/%s", base, mount_->directory);
        trees[i] = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | O_CLOEXEC);
        if (trees[i] < 0)
            fail("open the volume of", mount_->path);
    }
}

void volume_attach(const struct mount_request *mount_, int tree)
{
    make_place(tree, mount_->path);
    if (syscall(SYS_move_mount, tree, "", AT_FDCWD, mount_->path,
                MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS) != 0)
        fail("mount a volume on", mount_->path);
    if (mount_->read_only &&
        mount("none", mount_->path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NODEV, NULL) != 0)
        fail("make read-only:", mount_->path);
    close(tree);
}

void close_others(int kept)
{
    if (kept > 3)
        syscall(SYS_close_range, 3U, (unsigned)kept - 1, 0U);
    syscall(SYS_close_range, (unsigned)kept + 1, ~0U, 0U);
}

/* --- freezing. A child holds the file system still: freezing may take as long as writing back does, and the time
 * limit holds whatever becomes of PID 1 and the host. */

static struct {
    struct source source; /* our end to the child; -1: nothing is frozen */
    struct port *port;    /* waits for an answer */
    bool thawing;
} freezer = {.source = {.fd = -1}};

static void hold(int host, const char *device, int timeout_s) __attribute__((noreturn));
static void hold(int host, const char *device, int timeout_s)
{
    struct child_report done = {.kind = CHILD_PID};
    struct pollfd asked = {.fd = host, .events = POLLIN};
    char path[64];
    snprintf(path, sizeof path, "/dev/%s", device);
    mkdir(RUN_DIR "/frozen", 0700);
    /* A second mount of the same file system, seen by nobody else, whatever the container has done with its own. */
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount(path, RUN_DIR "/frozen", "ext4", MS_NODEV, NULL) != 0)
        child_fail(host, GENERIC, "cannot reach the file system of %s: %s", device, strerror(errno));
    int fd = open(RUN_DIR "/frozen", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, FREEZE, 0) != 0)
        child_fail(host, GENERIC, "cannot freeze %s: %s", device, strerror(errno));
    child_send(host, &done, -1);
    /* The byte is taken: a socket that is closed with something unread in it resets what was sent the other way. */
    char word;
    bool in_time = poll(&asked, 1, timeout_s * 1000) > 0 && recv(host, &word, 1, 0) == 1;
    ioctl(fd, THAW, 0);
    if (in_time)
        child_send(host, &done, -1);
    _exit(0);
}

bool volumes_freeze(struct port *port, const char *device, int timeout_s, struct fault *fault)
{
    int ends[2];
    if (freezer.source.fd >= 0)
        return refuse(fault, BAD_STATE, "a file system is frozen already");
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return refuse(fault, GENERIC, "cannot make a socket: %s", strerror(errno));
    pid_t pid = fork();
    if (pid == 0) {
        close_others(ends[1]);
        hold(ends[1], device, timeout_s);
    }
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return refuse(fault, GENERIC, "cannot make a process: %s", strerror(errno));
    }
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    source_open(&freezer.source, ends[0]);
    freezer.port = port;
    freezer.thawing = false;
    return true;
}

bool volumes_thaw(struct port *port, struct fault *fault)
{
    if (freezer.source.fd < 0 || send(freezer.source.fd, "", 1, MSG_NOSIGNAL) != 1)
        return refuse(fault, BAD_STATE, "nothing is frozen: the time was over");
    freezer.port = port;
    freezer.thawing = true;
    return true;
}

void volumes_step(void)
{
    while (freezer.source.fd >= 0 && freezer.source.readable) {
        struct child_report message;
        struct fault fault = {0};
        ssize_t got = recv(freezer.source.fd, &message, sizeof message, 0);
        if (got < 0 && errno == EAGAIN) {
            freezer.source.readable = false;
            return;
        }
        if (got != (ssize_t)sizeof message)
            refuse(&fault, BAD_STATE, "nothing is frozen: the time was over");
        else if (message.kind == CHILD_FAULT)
            refuse(&fault, GENERIC, "%.*s", (int)sizeof message.text - 1, message.text);
        if (freezer.port)
            port_answer(freezer.port, fault.class ? NULL : "{}", &fault);
        freezer.port = NULL;
        if (got != (ssize_t)sizeof message || freezer.thawing)
            source_close(&freezer.source);
    }
}
