/* The one container, from PID 1's side: starting it, sessions in it, its end, and with it the end of the VM. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TICK_MS 5                       /* how often the way to the end is looked at */
#define KILL_DEADLINE_NS 5000000000LL   /* for the cgroup to become empty */
#define STREAMS_DEADLINE_NS 1000000000LL /* for the last words of sessions */
#define SESSION_DEADLINE_NS 10000000000LL /* for a session to begin: as long as the host waits for the answer */
#define STRANGERS 16

struct container container;

/* A child on its way to exec. The control port waits for it, so there is one at a time. */
static struct {
    bool active, exited;
    bool start; /* the container itself; else a session, or */
    bool layer; /* what is ready, which has more to do than wait */
    struct port *port;
    struct source report;
    pid_t pid, helper; /* pid 0: not known yet; the helper of a session makes its process, and tells */
    int status;
    int64_t deadline_ns; /* 0: none */
    struct { pid_t pid; int status; } strangers[STRANGERS]; /* ended while the session's pid was not known */
    unsigned strangers_count;
    uint32_t session;
    bool want_stdin;
    int ours[3]; /* PID 1's ends of the standard streams, or the terminal in the first */
    struct fault fault;
} pending = {.report = {.fd = -1}};

/* The child that will be the container's process, and waits for that. */
static struct {
    pid_t pid; /* 0: there is none */
    int report, ours[3]; /* the report is pending's while it mounts the layer */
} ready;

/* What sessions take over from the container. */
static struct {
    char *text;
    const char *env[MAX_ENV + 1], *cwd, *user;
} kept;

static struct source oom = {.fd = -1};
static int64_t killed_ns, drained_ns;
static bool empty;

static bool keep(const struct process_request *process, struct fault *fault)
{
    size_t size = strlen(process->cwd) + strlen(process->user) + 2;
    for (int i = 0; i < process->env_count; i++)
        size += strlen(process->env[i]) + 1;
    free(kept.text);
    char *at = kept.text = malloc(size);
    if (!at)
        return refuse(fault, GENERIC, "no memory for the environment");
    for (int i = 0; i < process->env_count; i++) {
        kept.env[i] = at;
        at = stpcpy(at, process->env[i]) + 1;
    }
    kept.env[process->env_count] = NULL;
    kept.cwd = at;
    kept.user = stpcpy(at, process->cwd) + 1;
    strcpy((char *)kept.user, process->user);
    return true;
}

static void close_all(int *fds, int count)
{
    for (int i = 0; i < count; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
        fds[i] = -1;
    }
}

/* What connects PID 1 with a child: its report, and pipes for standard streams from `first` on. The child's ends block,
 * ours do not. */
static bool connect_child(int first, int *report, int ours[3], struct spawn *spawn, struct fault *fault)
{
    int ends[2];
    for (int i = 0; i < 3; i++)
        ours[i] = spawn->standard[i] = -1;
    *report = spawn->report = -1;
    for (int i = first; i < 3; i++) {
        if (pipe2(ends, O_CLOEXEC) != 0)
            goto failed;
        ours[i] = ends[i == 0];
        spawn->standard[i] = ends[i != 0];
        fcntl(ours[i], F_SETFL, O_NONBLOCK);
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0) {
        *report = ends[0];
        spawn->report = ends[1];
        fcntl(*report, F_SETFL, O_NONBLOCK);
        return true;
    }
failed:
    refuse(fault, GENERIC, "cannot make pipes: %s", strerror(errno));
    close_all(ours, 3);
    close_all(spawn->standard, 3);
    return false;
}

/* Returns the child's pid, or 0 with the fault set and nothing left open. */
static pid_t make_child(int first, int *report, int ours[3], struct spawn *spawn, struct fault *fault)
{
    if (!connect_child(first, report, ours, spawn, fault))
        return 0;
    pid_t pid = spawn_process(spawn, fault);
    close(spawn->report);
    close_all(spawn->standard, 3);
    if (pid > 0)
        return pid;
    close(*report);
    close_all(ours, 3);
    return 0;
}

static void expect(struct port *port, pid_t pid, int report, const struct process_request *process)
{
    pending.active = true;
    pending.exited = false;
    pending.port = port;
    pending.pid = pid;
    pending.helper = 0;
    pending.deadline_ns = 0;
    pending.strangers_count = 0;
    pending.want_stdin = process->want_stdin;
    pending.fault = (struct fault){0};
    source_open(&pending.report, report);
}

struct start_request *container_request(void)
{
    static struct start_request *request;
    if (!request)
        request = shared_memory(sizeof *request);
    return request;
}

static bool make_ready(struct fault *fault)
{
    struct start_request *request = container_request();
    struct spawn spawn = {.process = &request->process, .start = request};
    if (!ready.pid)
        ready.pid = make_child(0, &ready.report, ready.ours, &spawn, fault);
    return ready.pid != 0;
}

static void forget_ready(void)
{
    close_all(&ready.report, 1);
    close_all(ready.ours, 3);
    ready.pid = 0;
}

void container_prepare(void)
{
    struct fault fault = {0};
    if (!make_ready(&fault))
        say("the first start will have to make its process: %s", fault.text);
}

static void order(enum order order)
{
    char word = (char)order;
    send(ready.report, &word, 1, MSG_NOSIGNAL); /* to one that has ended: its report says so */
}

bool container_layer(struct port *port, struct fault *fault)
{
    if (container.state != IDLE)
        return refuse(fault, BAD_STATE, "the container has been started already");
    if (!make_ready(fault))
        return false;
    order(ORDER_LAYER);
    pending.start = false;
    pending.layer = true;
    expect(port, 0, ready.report, &container_request()->process);
    ready.report = -1;
    return true;
}

bool container_start(struct port *port, struct fault *fault)
{
    const struct start_request *request = container_request();
    const struct process_request *process = &request->process;
    if (container.state != IDLE)
        return refuse(fault, BAD_STATE, "the container has been started already");
    if (!cgroup_set_limits(request, fault) || !keep(process, fault) || !make_ready(fault))
        return false;
    order(ORDER_START);
    memcpy(pending.ours, ready.ours, sizeof pending.ours);
    pending.start = true;
    pending.layer = false;
    expect(port, ready.pid, ready.report, process);
    ready.pid = 0;
    if (process->tty)
        close_all(pending.ours, 3);
    else if (!process->want_stdin)
        close_all(pending.ours, 1);
    container.state = STARTING;
    container.rehearsal = request->rehearse;
    container.init = process->init;
    return true;
}

bool container_exec(struct port *port, const struct exec_request *request, struct fault *fault)
{
    struct process_request process = request->process;
    struct spawn spawn = {.process = &process, .base_env = kept.env, .container = container.pid};
    if (container.state != RUNNING)
        return refuse(fault, BAD_STATE, "the container is not running");
    if (!streams_can_start(request->session, fault))
        return false;
    if (!process.cwd[0])
        process.cwd = kept.cwd;
    if (!process.user[0])
        process.user = kept.user;
    int report;
    pid_t helper = make_child(process.tty ? 3 : !process.want_stdin, &report, pending.ours, &spawn, fault);
    if (!helper)
        return false;
    pending.start = pending.layer = false;
    pending.session = request->session;
    expect(port, 0, report, &process);
    pending.helper = helper;
    pending.deadline_ns = now_ns(CLOCK_MONOTONIC) + SESSION_DEADLINE_NS;
    return true;
}

bool container_signal(int signal, bool all, struct fault *fault)
{
    if (container.state != RUNNING)
        return refuse(fault, BAD_STATE, "the container is not running");
    if (!all)
        return kill(container.pid, signal) == 0 ||
               refuse(fault, GENERIC, "cannot send signal %d: %s", signal, strerror(errno));
    if (signal == SIGKILL) {
        cgroup_kill();
        return true;
    }
    static char list[65536];
    char *at = list;
    if (read_small_file(CONTAINER_CGROUP "/cgroup.procs", list, sizeof list) < 0)
        return refuse(fault, GENERIC, "cannot list the processes: %s", strerror(errno));
    for (pid_t pid; (pid = (pid_t)strtol(at, &at, 10)) > 0;)
        kill(pid, signal);
    return true;
}

static int code_of(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void container_ended(int status)
{
    container.finished_ns = now_ns(CLOCK_REALTIME);
    container.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    container.exit_code = code_of(status);
    /* An init ends by itself, with the code of what was killed. */
    bool killed = container.signal == SIGKILL || (container.init && container.exit_code == 128 + SIGKILL);
    container.oom_killed = killed && container_oom_kills() > 0;
    cgroup_kill();
    container.state = EXITED;
    killed_ns = now_ns(CLOCK_MONOTONIC);
}

void container_exited(pid_t pid, int status)
{
    if (pending.active && pending.helper && !pending.pid) {
        unsigned at = pending.strangers_count++ % STRANGERS;
        pending.strangers[at].pid = pid;
        pending.strangers[at].status = status;
    }
    if (ready.pid && pid == ready.pid) { /* what it had to say of that comes with the next start, which makes another */
        forget_ready();
    } else if (pending.active && pid == pending.pid) { /* before PID 1 has heard of its exec */
        pending.exited = true;
        pending.status = status;
    } else if (container.state == RUNNING && pid == container.pid) {
        container_ended(status);
    } else {
        streams_exited(pid, code_of(status), WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    }
}

static void started(struct buffer *body)
{
    char event[64];
    int terminal = pending.ours[0], input = terminal, resize = -1;
    container.state = RUNNING;
    container.pid = pending.pid;
    container.started_ns = now_ns(CLOCK_REALTIME);
    container.oom_kills = 0; /* the group is new: whatever it counted befell this container */
    snprintf(event, sizeof event, "{\"event\": \"started\", \"pid\": %d}", (int)pending.pid);
    log_event(event);
    if (pending.ours[1] < 0) {
        resize = fcntl(terminal, F_DUPFD_CLOEXEC, 3);
        input = pending.want_stdin ? fcntl(terminal, F_DUPFD_CLOEXEC, 3) : -1;
        log_sources(terminal, -1);
    } else {
        log_sources(pending.ours[1], pending.ours[2]);
    }
    streams_container(input, resize);
    source_open(&oom, open(CONTAINER_CGROUP "/memory.events", O_RDONLY | O_CLOEXEC));
    buffer_text(body, "{\"pid\": ");
    buffer_int(body, container.pid);
    buffer_text(body, ", \"started_ns\": ");
    buffer_int(body, container.started_ns);
    buffer_text(body, "}");
}

static bool session_started(struct buffer *body, struct fault *fault)
{
    int out = pending.ours[1], input = pending.ours[0];
    if (out < 0) { /* a terminal */
        out = pending.ours[0];
        input = pending.want_stdin ? fcntl(out, F_DUPFD_CLOEXEC, 3) : -1;
    }
    if (!streams_start(pending.session, pending.pid, input, out, pending.ours[2], fault)) {
        kill(pending.pid, SIGKILL);
        return false;
    }
    buffer_text(body, "{\"pid\": ");
    buffer_int(body, pending.pid);
    buffer_text(body, "}");
    return true;
}

/* The child's report is at its end: it runs the program, or has said why not. */
static void launched(void)
{
    struct buffer body = {.limit = 256};
    struct fault fault = pending.fault;
    bool start = pending.start;
    if (!fault.class && !pending.pid)
        refuse(&fault, GENERIC, "the process ended before it could be run");
    if (pending.layer)
        forget_ready();
    else if (fault.class)
        close_all(pending.ours, 3);
    else if (start)
        started(&body);
    else
        session_started(&body, &fault);
    if (fault.class && start)
        container.state = IDLE;
    buffer_bytes(&body, "", 1); /* ends the text */
    port_answer(pending.port, fault.class ? NULL : body.data, &fault);
    buffer_free(&body);
    pending.active = false;
    source_close(&pending.report);
    if (pending.exited && !fault.class)
        container_exited(pending.pid, pending.status);
}

static const int *stranger(pid_t pid)
{
    for (unsigned i = 0; i < STRANGERS && i < pending.strangers_count; i++)
        if (pending.strangers[i].pid == pid)
            return &pending.strangers[i].status;
    return NULL;
}

/* The process may have ended before it was told of, or before that was heard. */
static void session_pid(pid_t pid)
{
    const int *status = stranger(pid);
    pending.pid = pid;
    pending.exited = status != NULL;
    pending.status = status ? *status : 0;
}

/* The control port waits for a session to begin, but not for ever: its process can be stopped by the container's, or be
 * held up by a file system. Returns how long there is left (-1: no limit). */
static int session_step(void)
{
    if (!pending.active || !pending.deadline_ns)
        return -1;
    int64_t left_ns = pending.deadline_ns - now_ns(CLOCK_MONOTONIC);
    if (left_ns > 0)
        return (int)(left_ns / 1000000) + 1;
    if (pending.pid && !pending.exited)
        kill(pending.pid, SIGKILL);
    else if (!pending.pid && !stranger(pending.helper))
        kill(pending.helper, SIGKILL);
    if (!pending.fault.class)
        refuse(&pending.fault, GENERIC, "the process could not be begun within %d s",
               (int)(SESSION_DEADLINE_NS / 1000000000));
    launched();
    return -1;
}

static void layered(void)
{
    port_answer(pending.port, "{}", NULL);
    pending.active = false;
    ready.report = source_release(&pending.report);
}

/* What a child on its way to exec has said. */
static void take_reports(void)
{
    while (pending.active && pending.report.readable) {
        struct child_report message;
        char control[CMSG_SPACE(sizeof(int))];
        struct iovec part = {.iov_base = &message, .iov_len = sizeof message};
        struct msghdr head = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t got = recvmsg(pending.report.fd, &head, MSG_CMSG_CLOEXEC);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN) {
            pending.report.readable = false;
        } else if (got != (ssize_t)sizeof message) {
            launched();
        } else if (message.kind == CHILD_LAYER) {
            layered();
        } else if (message.kind == CHILD_PID) {
            session_pid(message.pid);
        } else if (message.kind == CHILD_TTY) {
            const struct cmsghdr *rights = CMSG_FIRSTHDR(&head);
            if (rights && rights->cmsg_type == SCM_RIGHTS)
                memcpy(&pending.ours[0], CMSG_DATA(rights), sizeof(int));
        } else {
            message.text[sizeof message.text - 1] = '\0';
            static const char *const classes[] = {NOT_FOUND, NOT_EXECUTABLE, BAD_STATE};
            const char *class = GENERIC;
            for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
                if (strncmp(message.class, classes[i], sizeof message.class) == 0)
                    class = classes[i];
            refuse(&pending.fault, class, "%s", message.text);
        }
    }
}

#define OOM_LAYERS_BYTES 96

static const char *oom_layers(char text[OOM_LAYERS_BYTES])
{
    struct oom_layers kills = container_oom_layers();
    snprintf(text, OOM_LAYERS_BYTES, "\"oom_kills\": {\"container\": %lld, \"guest\": %lld}", (long long)kills.container,
             (long long)kills.guest);
    return text;
}

static void look_for_oom(void)
{
    int64_t kills = container_oom_kills();
    oom.readable = false;
    if (kills > container.oom_kills) {
        char event[160], layers[OOM_LAYERS_BYTES];
        snprintf(event, sizeof event, "{\"event\": \"oom\", \"kills\": %lld, %s}", (long long)kills, oom_layers(layers));
        log_event(event);
    }
    container.oom_kills = kills;
}

/* The end of a rehearsal: what it leaves is warm code, in the guest's caches and in an emulator's. All else is as it was
 * before it, so that a start finds what the first one would have found. */
static void stand_by(void)
{
    sync(); /* as at a real end */
    source_close(&oom);
    log_sources(-1, -1);
    streams_container(-1, -1);
    if (!cgroup_renew())
        say("the cgroup of the rehearsal stays: %s", strerror(errno));
    container = (struct container){.state = IDLE};
    killed_ns = drained_ns = 0;
    empty = false;
    container_prepare();
}

static void finish(void)
{
    char event[256], signal[16] = "null", layers[OOM_LAYERS_BYTES];
    if (container.rehearsal) {
        stand_by();
        return;
    }
    if (container.signal)
        snprintf(signal, sizeof signal, "%d", container.signal);
    snprintf(event, sizeof event, "{\"event\": \"exited\", \"exit_code\": %d, \"signal\": %s, \"oom_killed\": %s, %s}",
             container.exit_code, signal, container.oom_killed ? "true" : "false", oom_layers(layers));
    sync(); /* first: whoever reads the record may take the VM's end for granted, and bring it about */
    log_event(event);
    machine_end();
}

int container_step(void)
{
    take_reports();
    int limit_ms = session_step();
    volumes_step();
    if (oom.fd >= 0 && (oom.readable || container.state == EXITED))
        look_for_oom();
    if (container.state != EXITED)
        return limit_ms;
    int64_t now = now_ns(CLOCK_MONOTONIC);
    if (!empty && (!cgroup_populated() || now - killed_ns > KILL_DEADLINE_NS)) {
        empty = true;
        log_recheck();
    }
    if (!empty || !log_drained(true))
        return TICK_MS;
    if (!drained_ns)
        drained_ns = now;
    if (streams_idle() || now - drained_ns > STREAMS_DEADLINE_NS)
        finish();
    return container.state == EXITED ? TICK_MS : -1;
}

bool container_stop(void)
{
    if (container.state == RUNNING)
        cgroup_kill();
    return container.state == RUNNING || container.state == EXITED;
}

void machine_end(void)
{
    log_flush();
    sync();
    /* QEMU runs with -no-reboot: a reset ends it whatever the machine has for switching off. By triple fault: left to
     * itself the kernel may start the firmware anew instead (seen under TCG), and QEMU hears of no reset. */
    write_file("/sys/kernel/reboot/type", "triple");
    reboot(RB_AUTOBOOT);
    reboot(RB_POWER_OFF);
    say("cannot end the VM: %s", strerror(errno));
    for (;;)
        pause();
}
