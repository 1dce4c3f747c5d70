/* What the files of the guest init share. One thread, one epoll loop; nothing here blocks it for long. */
#ifndef HYPER_H
#define HYPER_H

#include "json.h"

#include <stdarg.h>
#include <sys/types.h>

#define RUN_DIR "/run/hyper"              /* files of ours; a tmpfs */
#define ETC_DIR RUN_DIR "/etc"            /* hostname, hosts, resolv.conf, machine-id for the container */
#define CGROUP_ROOT "/sys/fs/cgroup"
#define CONTAINER_CGROUP CGROUP_ROOT "/container"

/* --- main.c: sources of events. Edge-triggered: a flag stays set until a read or write says EAGAIN. */
struct source {
    int fd; /* -1: closed */
    bool readable, writable;
};
bool source_open(struct source *source, int fd);
void source_close(struct source *source);
int source_release(struct source *source); /* no more events; returns the descriptor, still open */
int64_t now_ns(int clock);

/* --- boot.c */
void say(const char *format, ...) __attribute__((format(printf, 1, 2))); /* one line on the console */
bool write_file(const char *path, const char *text);                     /* existing file, one write */
ssize_t read_small_file(const char *path, char *data, size_t size);      /* NUL-terminated; -1 and errno */
void boot_mounts(void);
void boot_modules(void);
void boot_network(void);
void boot_disks(void);
/* The pages that this process shares with the one that it comes from, or that came from it, are copied now, and not when
 * they are next written to: that may be in a hurry. */
void own_memory(void);
void boot_cgroups(void);
/* Open the named virtio-serial ports, non-blocking; what has not come by the deadline is -1. */
void boot_ports(const char *const *names, int *fds, int count, int64_t deadline_ns);

/* --- faults: why a request is refused */
struct fault {
    const char *class; /* NULL: none */
    char text[512];
};
bool refuse(struct fault *fault, const char *class, const char *format, ...) __attribute__((format(printf, 3, 4)));
#define GENERIC "GenericError"
#define NOT_FOUND "NotFound"
#define NOT_EXECUTABLE "NotExecutable"
#define INVALID "InvalidArgument"
#define BAD_STATE "BadState"

/* --- line.c: lines out of a byte stream */
#define LINE_MAX_BYTES (1 << 20)
struct line_buffer {
    size_t start, scan, end;
    bool skipping; /* until the next newline */
    char data[LINE_MAX_BYTES + 1];
};
enum line_event { LINE_NONE, LINE_READY, LINE_TOO_LONG };
char *line_space(struct line_buffer *lines, size_t *room);
void line_added(struct line_buffer *lines, size_t length);
enum line_event line_next(struct line_buffer *lines, char **line, size_t *length);

/* --- port.c: the JSON ports */
#define REPLY_MAX_BYTES (8 << 20)
#define ID_MAX_BYTES 1024
struct port {
    struct source source;
    bool stats;          /* read-only commands */
    bool waiting;        /* the answer to the last request is yet to come; nothing is read before */
    bool delimited;      /* the answer begins with 0xFF */
    char id[ID_MAX_BYTES]; /* of the last request, as JSON; empty: it had none */
    struct buffer out;
    size_t out_sent;
    struct line_buffer in;
};
void port_open(struct port *port, int fd, bool stats);
bool port_pump(struct port *port); /* a bounded piece of work; true: there may be more */
/* The answer to a request: `body` is JSON, or NULL for the fault. */
void port_answer(struct port *port, const char *body, const struct fault *fault);

/* --- commands.c */
void commands_prepare(void); /* what the usual request needs is in memory */
enum outcome { DONE, LATER };
/* Run one request line; the body of `return` is written to `out`. LATER: port_answer() will be called. */
enum outcome command_run(struct port *port, char *line, size_t length, struct buffer *out, struct fault *fault);

/* --- requests.c: what requests ask for, checked. Strings point into the request line. */
#define MAX_ARGS 4096
#define MAX_ENV 4096
#define MAX_TMPFS 32
#define MAX_MOUNTS 34
#define MAX_READ_FILES 128
#define MAX_STATVFS 32
#define MAX_HOSTS 64

enum builtin { BUILTIN_NONE, BUILTIN_IDLE, BUILTIN_GET, BUILTIN_PUT, BUILTIN_CHANGES, BUILTIN_LAYER };
struct process_request {
    enum builtin builtin; /* instead of a program of the container's: what archive.c does */
    const char *args[MAX_ARGS + 1], *env[MAX_ENV + 1];
    int args_count, env_count;
    const char *cwd, *user;
    bool tty, want_stdin, init; /* init: the program is not process 1 of the container */
    int rows, columns;
};
struct mount_request { /* the directory of a file system, or the file of a shared one, at a path of the container */
    const char *path, *device, *type, *options, *remount, *directory;
    bool read_only, device_read_only, copy;
};
struct start_request {
    struct process_request process;
    const char *image_device, *image_type;
    const char *writable_device, *writable_type; /* device NULL: none */
    const char *writable_options, *writable_remount;
    const char *warm_program, *warm_path; /* of hyper-layer; "": none */
    bool read_only, rehearse;
    struct { const char *path, *options; } tmpfs[MAX_TMPFS];
    int tmpfs_count;
    struct mount_request mounts[MAX_MOUNTS];
    int mounts_count;
    int64_t memory_max, memory_swap_max, cpu_quota_us, cpu_period_us, cpu_weight, pids_max; /* -1: not set */
};
struct exec_request {
    struct process_request process;
    uint32_t session;
};
struct identity_request {
    int64_t time_ns; /* -1: not given */
    unsigned char entropy[512];
    int entropy_bytes;
    const char *machine_id, *hostname;
    bool network;
    char interface[16];
    unsigned char mac[6];
    uint32_t address, gateway; /* network byte order; gateway 0: none */
    int prefix, mtu;           /* mtu 0: leave */
    const char *dns[16], *search[16];
    int dns_count, search_count;
    struct { const char *address, *name; } hosts[MAX_HOSTS];
    int hosts_count;
};
struct read_request {
    const char *files[MAX_READ_FILES], *statvfs[MAX_STATVFS];
    int files_count, statvfs_count;
    int64_t max_bytes;
    bool stats; /* only /proc and /sys */
};
#define FETCH_SEND_BYTES 4096
#define FETCH_MAX_BYTES ((1 << 20) + 16384) /* a body of 1 MiB, and what stands before it */
#define FETCH_TOTAL_BYTES (FETCH_MAX_BYTES + (1 << 18)) /* of all fetches together */
struct fetch_request {
    int64_t number, port, deadline_ms, max_bytes;
    const char *send; /* "": connect, and no more */
};
bool parse_start(const struct json *json, const struct json_node *arguments, struct start_request *request,
                 struct fault *fault);
/* What a start will be given: the member `writable`, and for the whole root `image`, `program` and `path`. */
bool parse_layer(const struct json *json, const struct json_node *object, struct start_request *request,
                 struct fault *fault);
bool parse_exec(const struct json *json, const struct json_node *arguments, struct exec_request *request,
                struct fault *fault);
bool parse_read(const struct json *json, const struct json_node *arguments, struct read_request *request,
                struct fault *fault);
bool parse_identity(const struct json *json, const struct json_node *arguments, struct identity_request *request,
                    struct fault *fault);
bool parse_fetch(const struct json *json, const struct json_node *arguments, struct fetch_request *request,
                 struct fault *fault);
/* arguments.c: one member of a type. `fallback` is taken where the member is absent or null. */
bool want_int(const struct json *json, const struct json_node *object, const char *key, int64_t low, int64_t high,
              const int64_t *fallback, int64_t *value, struct fault *fault);
bool want_bool(const struct json *json, const struct json_node *object, const char *key, bool *value,
               struct fault *fault);
bool want_text(const struct json *json, const struct json_node *object, const char *key, const char *fallback,
               const char **value, struct fault *fault);
bool want_texts(const struct json *json, const struct json_node *object, const char *key, const char **values,
                int limit, int *count, struct fault *fault);

/* --- container.c: the one container, and its states */
enum container_state { IDLE, STARTING, RUNNING, EXITED };
struct container {
    enum container_state state;
    pid_t pid;
    int exit_code, signal; /* signal 0: none; valid once EXITED */
    bool oom_killed, rehearsal, init; /* a rehearsal's end is not the VM's */
    int64_t oom_kills, started_ns, finished_ns;
};
extern struct container container;
void container_prepare(void); /* make the process that will become the container's: a start then finds it ready */
/* Where the request to start is put: memory that the process which is ready shares, as does the request line. */
struct start_request *container_request(void);
/* Let the process that is ready do ahead what the request has of a start (`rootfs_ahead`). */
bool container_layer(struct port *port, struct fault *fault);
bool container_start(struct port *port, struct fault *fault);
bool container_exec(struct port *port, const struct exec_request *request, struct fault *fault);
bool container_signal(int signal, bool all, struct fault *fault);
void container_exited(pid_t pid, int status); /* any child of PID 1 */
/* After events: answers from children, OOM, the way to the end. Returns how long the loop may sleep (-1: no limit). */
int container_step(void);
bool container_stop(void);    /* kill it, if it runs; true: its end will be the VM's */
void machine_end(void) __attribute__((noreturn)); /* flush, sync and end the VM */

/* --- cgroup.c */
int64_t container_oom_kills(void);
/* The same by what ran out: the container's own limit at most as often as that was the reason, else the guest. */
struct oom_layers {
    int64_t container, guest;
};
struct oom_layers container_oom_layers(void);
bool cgroup_populated(void);
void cgroup_kill(void);
void cgroup_prepare(void); /* its limits can be set without a look for their files */
bool cgroup_renew(void); /* an empty group becomes a new one, its counters at 0 */
bool cgroup_set_limits(const struct start_request *request, struct fault *fault);

/* --- spawn.c and the files beside it: what happens in the child */
void *shared_memory(size_t size); /* of PID 1 and its children, zeroed */
void shared_forget(void); /* in a child that is done with its request: nothing that it does can reach PID 1's memory */
struct child_report { /* sent over a SOCK_SEQPACKET pair; end of file without one: exec worked */
    enum { CHILD_PID, CHILD_TTY, CHILD_LAYER, CHILD_FAULT } kind; /* CHILD_LAYER: it is mounted, or unmounted */
    pid_t pid;
    char class[20];
    char text[480];
};
struct spawn {
    const struct process_request *process;
    const struct start_request *start; /* NULL: a session of the running container */
    const char *const *base_env;       /* of the container, for sessions */
    pid_t container;                   /* for sessions */
    int report;                        /* the child's end */
    int standard[3];                   /* -1: /dev/null, or the tty */
};
/* What PID 1 tells the container's process on `report` while it waits: to look at the request, and do this of it. */
enum order { ORDER_START, ORDER_LAYER };
/* Returns the child's pid, or -1 with the fault set. The container's own, of `spawn->start`, makes ready what it can
 * and waits for orders. */
pid_t spawn_process(struct spawn *spawn, struct fault *fault);
/* In the child: report and end. */
void child_fail(int report, const char *class, const char *format, ...)
    __attribute__((format(printf, 3, 4), noreturn));
void child_send(int report, struct child_report *message, int fd);
void rootfs_prepare(int report);                                         /* rootfs.c */
/* What a start will find done: the request's writable layer, and with an image in the request the whole root and its
 * program's beginning (warm.c). No layer in the request: what was mounted of it is unmounted. */
void rootfs_ahead(const struct start_request *request);
void rootfs_enter(const struct start_request *request);
void process_exec(const struct spawn *spawn) __attribute__((noreturn)); /* process.c */
/* Where a program without a slash in its name may be next, of a PATH that is left; false: nowhere. */
bool next_place(const char **list, const char *name, char *place, size_t size);
/* warm.c: let a program of the image at `root` begin, and end before it does anything. `null` is a /dev/null. */
void warm_up(const char *root, const char *null, const char *program, const char *path);
/* reaper.c: stay behind as the container's process 1; returns in a child, which is to become the program. */
void reaper_begin(int report, bool tty);
int rehearse(const char *self);                                         /* rehearse.c: `init rehearse` */
/* `remount`: options that hold once it is mounted; "" for none. */
void mount_device(const char *device, const char *type, const char *target, unsigned long flags, const char *options,
                  const char *remount);
void make_parents(const char *path);
void volumes_open(const struct start_request *start, const char *root, int *trees, int report); /* volumes.c */
void volume_attach(const struct mount_request *mount, int tree); /* closes it */
void archive_run(const struct spawn *spawn) __attribute__((noreturn)); /* archive.c */
void unarchive_run(int directory) __attribute__((noreturn));           /* unarchive.c */
#define MAX_GROUPS 64
struct user { /* user.c */
    uid_t uid;
    gid_t gid, groups[MAX_GROUPS];
    int groups_count;
    char home[256];
};
void user_find(const char *text, struct user *user, int report);

/* --- log.c: hyper.log */
void log_open(int fd);
void log_sources(int out, int err); /* the container's output: pipes, or a tty and -1 */
void log_event(const char *json);
void log_credit(int64_t bytes); /* so many more bytes of output may be written from now on */
int64_t log_written(void);      /* bytes of all records so far */
bool log_pump(void);
void log_recheck(void);            /* look at the output again, even if nothing was announced */
bool log_drained(bool no_writer); /* all output is in the port; `no_writer`: nobody is left who could write more */
void log_flush(void);             /* blocking: the last record has left the guest */

/* --- streams.c: hyper.streams */
void streams_open(int fd);
void streams_container(int input, int tty); /* session 0: its stdin and its tty, or -1 */
bool streams_can_start(uint32_t session, struct fault *fault);
/* A session's ends of its pipes; a tty is both `input` and `out`. */
bool streams_start(uint32_t session, pid_t pid, int input, int out, int err, struct fault *fault);
void streams_exited(pid_t pid, int exit_code, int signal);
bool streams_resize(uint32_t session, int rows, int columns, struct fault *fault);
bool streams_pump(void);
bool streams_idle(void); /* nothing left to send */

/* --- identity.c, netlink.c */
bool clock_set(int64_t time_ns, struct fault *fault);
bool clock_slew(int64_t time_ns, struct fault *fault);
bool identity_set(const struct identity_request *request, struct fault *fault);
void network_prepare(const char *interface); /* what needs not be known who the guest is for */
bool network_set(const struct identity_request *request, struct fault *fault);

/* --- volumes.c: the answers come later */
bool volumes_freeze(struct port *port, const char *device, int timeout_s, struct fault *fault);
bool volumes_thaw(struct port *port, struct fault *fault);
void volumes_step(void);
void close_others(int kept); /* in a child: PID 1's descriptors, but the standard streams and one */

/* --- stats.c */
void stats_read(const struct read_request *request, struct buffer *out);

/* --- fetch.c: a server on the guest's loopback is asked */
bool fetch_start(const struct fetch_request *request, struct fault *fault);
/* What has come of it, from `offset` on; once the last byte has been given the fetch is forgotten. */
bool fetch_result(int64_t number, int64_t offset, int64_t max_bytes, struct buffer *out, struct fault *fault);
bool fetch_pump(void);
int fetch_step(void); /* ends what is over its deadline; how long the loop may sleep (-1: no limit) */

extern int64_t boot_ns;

#endif
