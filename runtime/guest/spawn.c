/* Making the child: namespaces, cgroup, terminal, standard streams. Everything slow happens in the child. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#define NAMESPACES (CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC)

#define SHARED 2 /* the control port, and the request to start */

static struct { void *memory; size_t size; } shared[SHARED];
static int shared_count;

void *shared_memory(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || shared_count == SHARED) {
        say("no memory: %s", strerror(errno));
        machine_end();
    }
    shared[shared_count].memory = memory;
    shared[shared_count++].size = size;
    return memory;
}

void shared_forget(void)
{
    for (; shared_count > 0; shared_count--)
        munmap(shared[shared_count - 1].memory, shared[shared_count - 1].size);
}

void child_send(int report, struct child_report *message, int fd)
{
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {.iov_base = message, .iov_len = sizeof *message};
    struct msghdr head = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        head.msg_control = control;
        head.msg_controllen = sizeof control;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&head);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    }
    if (sendmsg(report, &head, MSG_NOSIGNAL) < 0)
        _exit(125); /* PID 1 has given up on this child */
}

void child_fail(int report, const char *class, const char *format, ...)
{
    struct child_report message = {.kind = CHILD_FAULT};
    va_list list;
    va_start(list, format);
    vsnprintf(message.text, sizeof message.text, format, list);
    va_end(list);
    snprintf(message.class, sizeof message.class, "%s", class);
    child_send(report, &message, -1);
    _exit(125);
}

static int open_cgroup(void)
{
    return open(CONTAINER_CGROUP, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* Like fork(), with the child born in the cgroup; -1 and errno also when there is no cgroup. */
static pid_t clone_into(int cgroup, uint64_t flags, uint64_t exit_signal)
{
    struct clone_args args = {
        .flags = flags | CLONE_INTO_CGROUP, .exit_signal = exit_signal, .cgroup = (uint64_t)cgroup};
    return cgroup < 0 ? -1 : (pid_t)syscall(SYS_clone3, &args, sizeof args);
}

static void forget_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* A terminal of the container's own devpts, so that the process finds itself under /dev/pts. */
static int open_terminal(const struct spawn *spawn)
{
    int master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK), unlocked = 0;
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlocked) != 0)
        child_fail(spawn->report, GENERIC, "cannot open a terminal: %s", strerror(errno));
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0 || ioctl(slave, TIOCSCTTY, 0) != 0)
        child_fail(spawn->report, GENERIC, "cannot take the terminal: %s", strerror(errno));
    struct winsize size = {.ws_row = (unsigned short)spawn->process->rows,
                           .ws_col = (unsigned short)spawn->process->columns};
    if (size.ws_row && size.ws_col)
        ioctl(slave, TIOCSWINSZ, &size);
    if (spawn->start) {
        char path[32];
        unsigned number;
        if (ioctl(master, TIOCGPTN, &number) == 0) {
            snprintf(path, sizeof path, "/dev/pts/%u", number);
            mount(path, "/dev/console", NULL, MS_BIND, NULL);
        }
    }
    child_send(spawn->report, &(struct child_report){.kind = CHILD_TTY}, master);
    close(master);
    return slave;
}

/* Until the container is known. It has all three pipes, and keeps what is wanted. */
static void wait_for_request(struct spawn *spawn)
{
    for (;;) {
        char word;
        ssize_t got = recv(spawn->report, &word, 1, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got != 1)
            _exit(125);
        if (word == ORDER_START)
            break;
        rootfs_ahead(spawn->start);
        child_send(spawn->report, &(struct child_report){.kind = CHILD_LAYER}, -1);
    }
    for (int i = 0; i < 3; i++)
        if (spawn->process->tty || (i == 0 && !spawn->process->want_stdin)) {
            close(spawn->standard[i]);
            spawn->standard[i] = -1;
        }
}

static void child_main(struct spawn *spawn) __attribute__((noreturn));
static void child_main(struct spawn *spawn)
{
    setsid();
    if (spawn->start) {
        rootfs_prepare(spawn->report);
        wait_for_request(spawn);
        rootfs_enter(spawn->start);
    }
    int terminal = spawn->process->tty ? open_terminal(spawn) : -1;
    for (int i = 0; i < 3; i++) {
        int fd = terminal >= 0 ? terminal : spawn->standard[i];
        if (fd < 0)
            fd = open("/dev/null", (i ? O_WRONLY : O_RDONLY) | O_CLOEXEC);
        if (fd < 0 || dup2(fd, i) != i)
            child_fail(spawn->report, GENERIC, "cannot set standard stream %d: %s", i, strerror(errno));
    }
    if (spawn->process->builtin)
        archive_run(spawn);
    process_exec(spawn);
}

/* A session: this child enters the container's namespaces, and its own child, a sibling of it, runs the program. */
static void session_main(struct spawn *spawn) __attribute__((noreturn));
static void session_main(struct spawn *spawn)
{
    if (spawn->process->builtin >= BUILTIN_CHANGES) { /* looks at the disks, not at the container */
        child_send(spawn->report, &(struct child_report){.kind = CHILD_PID, .pid = getpid()}, -1);
        child_main(spawn);
    }
    int told[2], cgroup = open_cgroup(); /* while it can be seen */
    int target = (int)syscall(SYS_pidfd_open, spawn->container, 0);
    if (target < 0 || setns(target, NAMESPACES) != 0)
        child_fail(spawn->report, BAD_STATE, "cannot enter the container: %s", strerror(errno));
    if (pipe2(told, O_CLOEXEC) != 0)
        child_fail(spawn->report, GENERIC, "cannot make a pipe: %s", strerror(errno));
    pid_t pid = clone_into(cgroup, CLONE_PARENT, 0);
    if (pid < 0)
        child_fail(spawn->report, GENERIC, "cannot make a process: %s", strerror(errno));
    if (pid == 0) {
        char nothing;
        close(told[1]);
        (void)!read(told[0], &nothing, 1); /* PID 1 must know the pid before this process can end */
        close(told[0]);
        /* Not before: whoever cannot see its own group may have no child born into another (nsdelegate). */
        if (setns(target, CLONE_NEWCGROUP) != 0)
            child_fail(spawn->report, BAD_STATE, "cannot enter the container: %s", strerror(errno));
        child_main(spawn);
    }
    child_send(spawn->report, &(struct child_report){.kind = CHILD_PID, .pid = pid}, -1);
    _exit(0);
}

pid_t spawn_process(struct spawn *spawn, struct fault *fault)
{
    int cgroup = spawn->start ? open_cgroup() : -1;
    pid_t pid = spawn->start ? clone_into(cgroup, NAMESPACES, SIGCHLD) : fork();
    int error = errno;
    if (pid == 0) {
        forget_signals();
        if (spawn->start)
            child_main(spawn);
        session_main(spawn);
    }
    if (pid < 0)
        refuse(fault, GENERIC, "cannot make a process: %s", strerror(error));
    if (cgroup >= 0)
        close(cgroup);
    return pid;
}
