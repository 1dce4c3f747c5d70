/* The beginning of the image's program ahead of time: its dynamic linker, its start, up to the first thing that it would do.
 * What that leaves is pages in memory, and under emulation translated code. Runs in the process that will be the container's.
 *
 * It is the image's own code, in a VM that only this image will have, and it must not be seen later that it ran: it sees
 * the image read-only, is nobody, and may call nothing but what reads and what sets up itself. At any other call it is
 * killed, and after a second. What fails is left out. */
#include "hyper.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 2 /* the second one still finds code that the first did not reach */
#define DEADLINE_S 1
#define MEMORY (64 << 20)
#define NOBODY 65534
#define WRITES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)

static const int harmless[] = {
    SYS_read, SYS_pread64, SYS_readv, SYS_lseek, SYS_close, SYS_stat, SYS_fstat, SYS_lstat, SYS_newfstatat, SYS_statx,
    SYS_access, SYS_faccessat, SYS_faccessat2, SYS_readlink, SYS_readlinkat, SYS_getdents64, SYS_getcwd, SYS_statfs,
    SYS_fstatfs, SYS_ioctl, SYS_fcntl, SYS_dup, SYS_dup2, SYS_dup3, SYS_umask,
    SYS_mmap, SYS_mprotect, SYS_munmap, SYS_mremap, SYS_madvise, SYS_brk,
    SYS_arch_prctl, SYS_set_tid_address, SYS_set_robust_list, SYS_rseq, SYS_prlimit64, SYS_getrlimit, SYS_getrandom,
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack, SYS_futex, SYS_membarrier, SYS_sched_yield,
    SYS_uname, SYS_sysinfo, SYS_sched_getaffinity, SYS_getpid, SYS_gettid, SYS_getppid, SYS_getuid, SYS_geteuid,
    SYS_getgid, SYS_getegid, SYS_getresuid, SYS_getresgid, SYS_getgroups, SYS_clock_gettime, SYS_clock_getres,
    SYS_gettimeofday, SYS_time, SYS_execve,
};
#define HARMLESS (sizeof harmless / sizeof *harmless)

/* The filter of seccomp(2): a list of pairs, each a comparison that skips what follows it, and what follows. */
static bool allow_only_harmless(void)
{
    static const struct { unsigned number, flags; } opens[] = {
        {SYS_openat, offsetof(struct seccomp_data, args[2])}, {SYS_open, offsetof(struct seccomp_data, args[1])}};
    static const struct sock_filter kill = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
                                    allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_filter filter[4 + 2 * HARMLESS + 5 * 2 + 1], *at = filter;
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    *at++ = kill;
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < HARMLESS; i++) {
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)harmless[i], 0, 1);
        *at++ = allow;
    }
    for (int i = 0; i < 2; i++) {
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, opens[i].number, 0, 4);
        *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, opens[i].flags);
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, WRITES, 0, 1);
        *at++ = kill;
        *at++ = allow;
    }
    *at++ = kill;
    struct sock_fprog program = {.len = (unsigned short)(at - filter), .filter = filter};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void begin(const char *root, const char *null, const char *program, const char *path)
{
    static const struct { int what; struct rlimit limit; } limits[] = {
        {RLIMIT_CPU, {DEADLINE_S, DEADLINE_S}}, {RLIMIT_DATA, {MEMORY, MEMORY}}, {RLIMIT_CORE, {0, 0}}};
    char place[4096 + 256], variable[4096 + 8];
    char *const args[] = {(char *)program, NULL}, *const environment[] = {variable, NULL};
    snprintf(variable, sizeof variable, "PATH=%s", path);
    int fd = open(null, O_RDWR | O_CLOEXEC);
    for (int i = 0; i < 3; i++)
        if (fd < 0 || dup2(fd, i) != i)
            return;
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (setrlimit(limits[i].what, &limits[i].limit) != 0)
            return;
    if (chroot(root) != 0 || chdir("/") != 0 || setgroups(0, NULL) != 0 || setgid(NOBODY) != 0 || setuid(NOBODY) != 0 ||
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || !allow_only_harmless())
        return;
    if (strchr(program, '/'))
        execve(program, args, environment);
    else
        while (next_place(&path, program, place, sizeof place))
            execve(place, args, environment);
}

static void wake(int signal)
{
    (void)signal;
}

void warm_up(const char *root, const char *null, const char *program, const char *path)
{
    struct sigaction ends_a_wait = {.sa_handler = wake}, before;
    sigaction(SIGALRM, &ends_a_wait, &before);
    for (int i = 0; i < ROUNDS; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            begin(root, null, program, path);
            _exit(1);
        }
        alarm(DEADLINE_S);
        if (pid > 0 && waitpid(pid, NULL, 0) != pid) {
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
        }
        alarm(0);
    }
    sigaction(SIGALRM, &before, NULL);
}
