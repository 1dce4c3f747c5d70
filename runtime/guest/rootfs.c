/* The container's root: image, writable layer, kernel file systems, files in memory. Runs in the child.
 *
 * Paths of the image are only walked after chroot: its symlinks are hostile, and inside they lead nowhere else. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define IMAGE RUN_DIR "/image"
#define WRITABLE RUN_DIR "/writable"
#define ROOT RUN_DIR "/root"
#define READY RUN_DIR "/ready" /* what needs nothing of the container, mounted before it is known */
/* Of linux/fs.h and linux/mount.h, which some C libraries' sys/mount.h cannot stand beside it. */
#define BLKFLSBUF _IO(0x12, 97)
#define OPEN_TREE_CLONE 1
#define MOVE_MOUNT_F_EMPTY_PATH 0x4
#define MOVE_MOUNT_T_SYMLINKS 0x10
#define QUIET (MS_NOSUID | MS_NODEV | MS_NOEXEC)

static int report;

static void must_mount(const char *source, const char *target, const char *type, unsigned long flags,
                       const char *data)
{
    if (mount(source, target, type, flags, data) != 0)
        child_fail(report, GENERIC, "cannot mount %s (%s) on %s: %s", source, type ? type : "bind", target,
                   strerror(errno));
}

static void must_mkdir(const char *path)
{
    if (mkdir(path, 0755) != 0 && errno != EEXIST)
        child_fail(report, GENERIC, "cannot make the directory %s: %s", path, strerror(errno));
}

void make_parents(const char *path)
{
    char part[4096];
    snprintf(part, sizeof part, "%s", path);
    for (char *at = part + 1; *at; at++)
        if (*at == '/') {
            *at = '\0';
            mkdir(part, 0755);
            *at = '/';
        }
    must_mkdir(part);
}

void mount_device(const char *device, const char *type, const char *target, unsigned long flags, const char *options,
                  const char *remount)
{
    char path[64];
    snprintf(path, sizeof path, "/dev/%s", device);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        child_fail(report, GENERIC, "there is no device %s: %s", device, strerror(errno));
    ioctl(fd, BLKFLSBUF, 0); /* a clone's disk is not the one its template looked at */
    close(fd);
    must_mkdir(target);
    must_mount(path, target, type, flags, options);
    if (remount[0])
        must_mount(path, target, NULL, MS_REMOUNT | flags, remount);
}

static bool imaged, layered, rooted; /* the image, the writable layer, the overlay of both is mounted already */

static void mount_layer(const struct start_request *start)
{
    if ((rooted && umount2(ROOT, 0) != 0) || (layered && umount2(WRITABLE, 0) != 0))
        child_fail(report, GENERIC, "cannot unmount the writable layer: %s", strerror(errno));
    rooted = false;
    layered = start->writable_device != NULL;
    if (layered)
        mount_device(start->writable_device, start->writable_type, WRITABLE, MS_NODEV | MS_NOATIME,
                     start->writable_options, start->writable_remount);
}

static void mount_image(const struct start_request *start)
{
    if (!imaged)
        mount_device(start->image_device, start->image_type, IMAGE, MS_RDONLY | MS_NODEV, NULL, "");
    imaged = true;
}

static void mount_overlay(void)
{
    struct stat image, upper;
    must_mkdir(WRITABLE "/upper");
    must_mkdir(WRITABLE "/work");
    /* The root directory itself is the upper one's: it must look as the image's does. */
    if (stat(IMAGE, &image) == 0 && stat(WRITABLE "/upper", &upper) == 0) {
        if (upper.st_uid != image.st_uid || upper.st_gid != image.st_gid)
            (void)!chown(WRITABLE "/upper", image.st_uid, image.st_gid);
        if (upper.st_mode != image.st_mode)
            chmod(WRITABLE "/upper", image.st_mode & 07777);
    }
    must_mount("overlay", ROOT, "overlay", MS_NODEV,
               "lowerdir=" IMAGE ",upperdir=" WRITABLE "/upper,workdir=" WRITABLE "/work");
    rooted = true;
}

/* An overlay over nothing, mounted and unmounted: the next finds the layer's directories and allocator in memory. */
static void try_overlay(void)
{
    must_mkdir(WRITABLE "/upper");
    must_mkdir(WRITABLE "/work");
    if (mount("overlay", ROOT, "overlay", MS_NODEV,
              "index=off,lowerdir=" IMAGE ",upperdir=" WRITABLE "/upper,workdir=" WRITABLE "/work") == 0 &&
        umount2(ROOT, 0) != 0)
        child_fail(report, GENERIC, "cannot unmount the overlay: %s", strerror(errno));
    rmdir(WRITABLE "/work/work");
}

void rootfs_ahead(const struct start_request *start)
{
    mount_layer(start);
    if (!layered)
        return;
    if (start->image_device) {
        mount_image(start);
        mount_overlay();
        if (start->warm_program[0])
            warm_up(IMAGE, READY "/dev/null", start->warm_program, start->warm_path);
    } else if (!imaged) {
        try_overlay();
    }
    sync(); /* no clone has that to write */
}

static void mount_root(const struct start_request *start)
{
    mount_image(start);
    if (!layered || !start->writable_device)
        mount_layer(start);
    else if (start->writable_remount[0])
        must_mount("none", WRITABLE, NULL, MS_REMOUNT | MS_NODEV | MS_NOATIME, start->writable_remount);
    if (!layered)
        must_mount("tmpfs", WRITABLE, "tmpfs", MS_NODEV, "mode=0755");
    if (!rooted)
        mount_overlay();
}

static void make_devices(void)
{
    static const struct { const char *path; mode_t mode; unsigned major, minor; } devices[] = {
        {READY "/dev/null", 0666, 1, 3},   {READY "/dev/zero", 0666, 1, 5},    {READY "/dev/full", 0666, 1, 7},
        {READY "/dev/random", 0666, 1, 8}, {READY "/dev/urandom", 0666, 1, 9}, {READY "/dev/tty", 0666, 5, 0},
    };
    must_mount("tmpfs", READY "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k");
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        if (mknod(devices[i].path, S_IFCHR | devices[i].mode, makedev(devices[i].major, devices[i].minor)) != 0)
            child_fail(report, GENERIC, "cannot make %s: %s", devices[i].path, strerror(errno));
    must_mkdir(READY "/dev/pts");
    must_mkdir(READY "/dev/shm");
    must_mkdir(READY "/dev/mqueue");
    must_mount("devpts", READY "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
               "newinstance,ptmxmode=0666,mode=0620,gid=5");
    must_mount("shm", READY "/dev/shm", "tmpfs", QUIET, "mode=1777,size=64m");
    mount("mqueue", READY "/dev/mqueue", "mqueue", QUIET, NULL); /* a kernel may do without */
    if (symlink("/proc/self/fd", READY "/dev/fd") != 0 || symlink("/proc/self/fd/0", READY "/dev/stdin") != 0 ||
        symlink("/proc/self/fd/1", READY "/dev/stdout") != 0 || symlink("/proc/self/fd/2", READY "/dev/stderr") != 0 ||
        symlink("pts/ptmx", READY "/dev/ptmx") != 0)
        child_fail(report, GENERIC, "cannot make the links of /dev: %s", strerror(errno));
    close(open(READY "/dev/console", O_WRONLY | O_CREAT | O_CLOEXEC, 0600)); /* where a terminal is bound to */
}

/* What stays mounted below the container's root counts as seen there, though no path leads to it: a user namespace may
 * mount what it can see in full, so /proc without our masks (mount_too_revealing() in fs/namespace.c). */
static void leave(const char *path)
{
    if (umount2(path, MNT_DETACH) != 0)
        child_fail(report, GENERIC, "cannot unmount %s: %s", path, strerror(errno));
}

static const char *const kernel_places[] = {"/proc", "/sys", "/dev"};
static int kernel_trees[3];

void rootfs_prepare(int to)
{
    static const char *const guarded[] = {READY "/proc/sys", READY "/proc/sysrq-trigger", READY "/proc/irq",
                                          READY "/proc/bus"};
    static const char *const hidden[] = {READY "/proc/kcore", READY "/proc/keys", READY "/proc/timer_list"};
    report = to;
    umask(0);
    must_mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
    must_mkdir(READY);
    must_mkdir(READY "/proc");
    must_mkdir(READY "/sys");
    must_mkdir(READY "/dev");
    must_mount("proc", READY "/proc", "proc", QUIET, NULL);
    must_mount("sysfs", READY "/sys", "sysfs", QUIET | MS_RDONLY, NULL);
    /* The group of this process is the root of what it sees from here on. */
    if (unshare(CLONE_NEWCGROUP) != 0)
        child_fail(report, GENERIC, "cannot make a cgroup namespace: %s", strerror(errno));
    must_mount("cgroup", READY "/sys/fs/cgroup", "cgroup2", QUIET | MS_RDONLY, NULL);
    make_devices();
    for (size_t i = 0; i < sizeof guarded / sizeof *guarded; i++)
        if (mount(guarded[i], guarded[i], NULL, MS_BIND | MS_REC, NULL) == 0)
            must_mount("none", guarded[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | QUIET, NULL);
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        if (mount(READY "/dev/null", hidden[i], NULL, MS_BIND, NULL) != 0 && errno != ENOENT)
            child_fail(report, GENERIC, "cannot hide %s: %s", hidden[i], strerror(errno));
    must_mkdir(IMAGE);
    must_mkdir(WRITABLE);
    must_mkdir(ROOT);
    for (int i = 0; i < 3; i++) {
        char path[64];
        snprintf(path, sizeof path, READY "%s", kernel_places[i]);
        kernel_trees[i] = (int)syscall(SYS_open_tree, AT_FDCWD, path, O_CLOEXEC);
    }
    own_memory(); /* the last that reads /proc */
    leave("/proc");
    leave("/sys");
}

/* Options as `mount -t tmpfs -o` takes them: flags are ours to translate, the rest is tmpfs's own. */
static void mount_tmpfs(const char *path, const char *options)
{
    static const struct { const char *name; unsigned long set, clear; } words[] = {
        {"ro", MS_RDONLY, 0},     {"rw", 0, MS_RDONLY},   {"nosuid", MS_NOSUID, 0}, {"suid", 0, MS_NOSUID},
        {"noexec", MS_NOEXEC, 0}, {"exec", 0, MS_NOEXEC}, {"nodev", 0, 0},          {"noatime", MS_NOATIME, 0},
        {"atime", 0, MS_NOATIME}, {"relatime", MS_RELATIME, MS_NOATIME},
        {"nodiratime", MS_NODIRATIME, 0}, {"diratime", 0, MS_NODIRATIME},
    };
    char text[1100], data[1100] = "", *rest = text, *word;
    unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    snprintf(text, sizeof text, "%s", options);
    while ((word = strsep(&rest, ","))) {
        bool known = !*word;
        for (size_t i = 0; i < sizeof words / sizeof *words; i++)
            if (strcmp(word, words[i].name) == 0) {
                flags = (flags | words[i].set) & ~words[i].clear;
                known = true;
            }
        if (!known) {
            strcat(data, data[0] ? "," : "");
            strcat(data, word);
        }
    }
    make_parents(path);
    must_mount("tmpfs", path, "tmpfs", flags, data);
}

static bool attach(int tree, const char *path)
{
    const unsigned flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS;
    return syscall(SYS_move_mount, tree, "", AT_FDCWD, path, flags) == 0;
}

/* A file of ours over one of /etc. `tree` is a detached mount, taken while our own root could be seen. The file is only
 * opened where it has to be made: opening one of the image's to write would copy it. What is in a volume there is not the
 * image's: nothing of it is removed, and if it takes no file, as one that is read-only, the container goes without. */
static void bind_file(int tree, const char *path)
{
    if (!attach(tree, path)) {
        struct statfs etc;
        bool image = statfs("/etc", &etc) == 0 && etc.f_type == OVERLAYFS_SUPER_MAGIC;
        int fd = open(path, O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0644);
        if (fd < 0 && image && unlink(path) == 0) /* a symlink to nowhere */
            fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd >= 0)
            close(fd);
        if (!attach(tree, path) && image)
            child_fail(report, GENERIC, "cannot bind %s: %s", path, strerror(errno));
    }
    close(tree);
}

static const char *const files[] = {"hostname", "hosts", "resolv.conf", "machine-id"};
#define FILES 4
#define MACHINE_ID 3

struct place {
    enum { OF_FILE, OF_VOLUME, OF_TMPFS } kind;
    int index, parts;
};

static void add_place(struct place *places, int *count, struct place one, const char *path)
{
    int at = (*count)++;
    for (one.parts = 0; path[strspn(path, "/")]; one.parts++) {
        path += strspn(path, "/");
        path += strcspn(path, "/");
    }
    for (; at > 0 && places[at - 1].parts > one.parts; at--)
        places[at] = places[at - 1];
    places[at] = one;
}

/* What the container has over its root, by the number of parts of its path, as Docker has it: what is deeper comes later,
 * so that nothing is hidden by what it lies in. */
static void attach_all(const struct start_request *start, const int *trees, const int *volumes)
{
    struct place places[FILES + MAX_MOUNTS + MAX_TMPFS];
    struct stat status;
    int count = 0;
    for (int i = 0; i < FILES; i++)
        add_place(places, &count, (struct place){.kind = OF_FILE, .index = i}, "/etc/file");
    for (int i = 0; i < start->mounts_count; i++)
        add_place(places, &count, (struct place){.kind = OF_VOLUME, .index = i}, start->mounts[i].path);
    for (int i = 0; i < start->tmpfs_count; i++)
        add_place(places, &count, (struct place){.kind = OF_TMPFS, .index = i}, start->tmpfs[i].path);
    for (int at = 0; at < count; at++) {
        int i = places[at].index;
        char path[64];
        if (places[at].kind == OF_VOLUME) {
            volume_attach(&start->mounts[i], volumes[i]);
        } else if (places[at].kind == OF_TMPFS) {
            mount_tmpfs(start->tmpfs[i].path, start->tmpfs[i].options);
        } else if (trees[i] >= 0) {
            snprintf(path, sizeof path, "/etc/%s", files[i]);
            if (i != MACHINE_ID || lstat(path, &status) == 0)
                bind_file(trees[i], path);
        }
    }
}

void rootfs_enter(const struct start_request *start)
{
    int trees[FILES], volumes[MAX_MOUNTS];
    mount_root(start);
    volumes_open(start, ROOT, volumes, report);
    for (int i = 0; i < FILES; i++) {
        char path[64];
        snprintf(path, sizeof path, ETC_DIR "/%s", files[i]); /* -1: no identity was given */
        trees[i] = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | O_CLOEXEC);
    }
    /* The initramfs cannot be pivoted away: the new root is moved over it. */
    int initramfs = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (chdir(ROOT) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0)
        child_fail(report, GENERIC, "cannot enter the root: %s", strerror(errno));
    for (int i = 0; i < 3; i++) {
        must_mkdir(kernel_places[i]);
        if (!attach(kernel_trees[i], kernel_places[i]))
            child_fail(report, GENERIC, "cannot mount %s: %s", kernel_places[i], strerror(errno));
        close(kernel_trees[i]);
    }
    if (fchdir(initramfs) != 0)
        child_fail(report, GENERIC, "cannot look below the root: %s", strerror(errno));
    leave("dev");
    leave("run");
    close(initramfs);
    if (chdir("/") != 0)
        child_fail(report, GENERIC, "cannot enter the root: %s", strerror(errno));
    must_mkdir("/etc");
    attach_all(start, trees, volumes);
    if (start->process.cwd[0])
        make_parents(start->process.cwd); /* as Docker does; before the root may become read-only */
    if (start->read_only)
        must_mount("none", "/", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NODEV, NULL);
    umask(022);
}
