/* The last steps before the program: user, directory, environment, capabilities, exec. Runs in the child. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* Docker's default set, without MKNOD: a device node would open the guest's own devices, this agent's ports as well. */
#define BIT(capability) (1ULL << (capability))
#define KEPT                                                                                                          \
    (BIT(CAP_CHOWN) | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_FOWNER) | BIT(CAP_FSETID) | BIT(CAP_KILL) | BIT(CAP_SETGID) |   \
     BIT(CAP_SETUID) | BIT(CAP_SETPCAP) | BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_NET_RAW) | BIT(CAP_SYS_CHROOT) |        \
     BIT(CAP_AUDIT_WRITE) | BIT(CAP_SETFCAP))

static const char *env[MAX_ENV * 2 + 8];
static int env_count;

static size_t name_length(const char *entry)
{
    return strcspn(entry, "=");
}

static int find_env(const char *entry)
{
    size_t length = name_length(entry);
    for (int i = 0; i < env_count; i++)
        if (strncmp(env[i], entry, length) == 0 && env[i][length] == '=')
            return i;
    return -1;
}

static void put_env(const char *entry) /* NAME=VALUE; NAME alone takes it away */
{
    int at = find_env(entry);
    if (strchr(entry, '=')) {
        env[at >= 0 ? at : env_count++] = entry;
    } else if (at >= 0) {
        env_count--;
        memmove(&env[at], &env[at + 1], (size_t)(env_count - at) * sizeof *env);
    }
}

static void default_env(char *entry) /* NAME=VALUE, kept only where there is no NAME */
{
    if (find_env(entry) < 0)
        env[env_count++] = entry;
}

static void make_env(const struct spawn *spawn, const struct user *user)
{
    static char home[sizeof user->home + 8], host[80] = "HOSTNAME=", path[] = "PATH=" DEFAULT_PATH, term[] = "TERM=xterm";
    for (const char *const *at = spawn->base_env; at && *at; at++)
        put_env(*at);
    for (int i = 0; i < spawn->process->env_count; i++)
        put_env(spawn->process->env[i]);
    snprintf(home, sizeof home, "HOME=%s", user->home);
    gethostname(host + 9, sizeof host - 10);
    default_env(path);
    default_env(host);
    default_env(home);
    if (spawn->process->tty)
        default_env(term);
    env[env_count] = NULL;
}

static void set_limits(void)
{
    struct rlimit files = {1024, 524288}, processes = {RLIM_INFINITY, RLIM_INFINITY}; /* pids.max is the limit */
    setrlimit(RLIMIT_NOFILE, &files);
    setrlimit(RLIMIT_NPROC, &processes);
}

static void become(const struct user *user, int report)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {
        {.effective = (uint32_t)KEPT, .permitted = (uint32_t)KEPT},
        {.effective = (uint32_t)(KEPT >> 32), .permitted = (uint32_t)(KEPT >> 32)},
    };
    for (int capability = 0; capability < 64; capability++)
        if (!(KEPT >> capability & 1) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 && errno != EINVAL)
            child_fail(report, GENERIC, "cannot drop capability %d: %s", capability, strerror(errno));
    if (setgroups((size_t)user->groups_count, user->groups) != 0 || setgid(user->gid) != 0 || setuid(user->uid) != 0)
        child_fail(report, GENERIC, "cannot become user %u: %s", user->uid, strerror(errno));
    if (user->uid == 0 && syscall(SYS_capset, &head, data) != 0)
        child_fail(report, GENERIC, "cannot set capabilities: %s", strerror(errno));
}

/* execve() with what went wrong sorted as a shell sorts it: 127 not found, 126 not executable. Returns only for
 * a file that is not there. */
static void try_exec(const char *path, char *const *args, const char *name, int report, bool *denied)
{
    execve(path, args, (char *const *)env);
    switch (errno) {
    case ENOENT:
        if (access(path, F_OK) == 0)
            child_fail(report, NOT_FOUND, "exec: \"%s\": its interpreter does not exist", name);
        return;
    case ENOTDIR:
    case ENAMETOOLONG: return;
    case EACCES: *denied = true; return;
    case ENOEXEC: child_fail(report, NOT_EXECUTABLE, "exec: \"%s\": exec format error", name);
    default: child_fail(report, NOT_EXECUTABLE, "exec: \"%s\": %s", name, strerror(errno));
    }
}

bool next_place(const char **list, const char *name, char *place, size_t size)
{
    while (*list) {
        int length = (int)strcspn(*list, ":");
        int made = snprintf(place, size, "%.*s/%s", length ? length : 1, length ? *list : ".", name);
        *list = (*list)[length] ? *list + length + 1 : NULL;
        if (made > 0 && (size_t)made < size)
            return true;
    }
    return false;
}

void process_exec(const struct spawn *spawn)
{
    const struct process_request *process = spawn->process;
    int report = spawn->report;
    char *const *args = (char *const *)process->args;
    const char *name = process->args[0];
    const char *cwd = process->cwd[0] ? process->cwd : "/";
    bool denied = false;
    struct user user;

    close_others(report); /* exec would do it, but an init stays what it is */
    user_find(process->user, &user, report);
    make_env(spawn, &user);
    /* The streams are the user's, so that it may open /dev/stdout. */
    for (int i = 0; i < 3; i++)
        if (process->tty || spawn->standard[i] >= 0)
            (void)!fchown(i, user.uid, process->tty ? (gid_t)-1 : user.gid);
    if (chdir(cwd) != 0)
        child_fail(report, errno == ENOENT ? NOT_FOUND : NOT_EXECUTABLE, "chdir to \"%s\": %s", cwd, strerror(errno));
    set_limits();
    /* From become() on it has no more capabilities than the container's root, which could trace it, take over its
     * descriptors and write to PID 1's memory. Not so where it cannot be dumped; exec makes of that the usual. */
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
        child_fail(report, GENERIC, "cannot be hidden: %s", strerror(errno));
    become(&user, report);
    if (process->init)
        reaper_begin(report, process->tty);
    if (strchr(name, '/')) {
        try_exec(name, args, name, report, &denied);
    } else {
        char place[4096 + 256];
        const char *list = env[find_env("PATH=")] + 5;
        while (next_place(&list, name, place, sizeof place))
            try_exec(place, args, name, report, &denied);
    }
    if (denied)
        child_fail(report, NOT_EXECUTABLE, "exec: \"%s\": permission denied", name);
    child_fail(report, NOT_FOUND, strchr(name, '/') ? "exec: \"%s\": no such file or directory"
                                                    : "exec: \"%s\": executable file not found in $PATH", name);
}
