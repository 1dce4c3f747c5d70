/* Hostile input for the guest agent's ports, on the host, under the address and undefined-behaviour sanitizers.
 *
 *   agent_fuzz SEED SECONDS
 *
 * Real code: framing, JSON, dispatch, checking of arguments, the streams port. What would act on the system is replaced
 * by stubs that touch every byte they are given, so that a bad pointer is seen. Equal seeds give equal input. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct container container;
int64_t boot_ns = 1;
static volatile size_t touched;
static uint64_t state;
static struct port *late; /* the answer to its request comes later */
static long requests, answers, accepted;

static uint32_t below(uint32_t limit)
{
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(state >> 33) % limit;
}

static void touch(const char *text)
{
    if (text)
        touched += strlen(text);
}

/* --- stubs */
int64_t now_ns(int clock) { return clock + 1; }
void say(const char *format, ...) { touch(format); }
bool source_open(struct source *source, int fd)
{
    *source = (struct source){.fd = fd, .readable = fd >= 0, .writable = fd >= 0};
    return true;
}
void source_close(struct source *source)
{
    if (source->fd >= 0)
        close(source->fd);
    *source = (struct source){.fd = -1};
}
static void touch_process(const struct process_request *process)
{
    for (int i = 0; i < process->args_count; i++)
        touch(process->args[i]);
    for (int i = 0; i < process->env_count; i++)
        touch(process->env[i]);
    if (process->args[process->args_count])
        abort(); /* execve() wants a NULL there */
    touch(process->cwd);
    touch(process->user);
    accepted++;
}
struct start_request *container_request(void)
{
    static struct start_request request;
    return &request;
}

bool container_layer(struct port *port, struct fault *fault)
{
    const struct start_request *request = container_request();
    (void)port;
    touch(request->writable_device);
    touch(request->writable_type);
    touch(request->writable_options);
    touch(request->writable_remount);
    return refuse(fault, BAD_STATE, "stub");
}
bool container_start(struct port *port, struct fault *fault)
{
    const struct start_request *request = container_request();
    (void)port;
    touch_process(&request->process);
    touch(request->image_device);
    touch(request->image_type);
    touch(request->writable_device);
    touch(request->writable_options);
    for (int i = 0; i < request->tmpfs_count; i++) {
        touch(request->tmpfs[i].path);
        touch(request->tmpfs[i].options);
    }
    for (int i = 0; i < request->mounts_count; i++) {
        touch(request->mounts[i].path);
        touch(request->mounts[i].device);
        touch(request->mounts[i].type);
        touch(request->mounts[i].options);
        touch(request->mounts[i].directory);
    }
    return refuse(fault, BAD_STATE, "stub");
}
bool container_exec(struct port *port, const struct exec_request *request, struct fault *fault)
{
    (void)fault;
    touch_process(&request->process);
    late = port;
    return true;
}
bool container_signal(int signal, bool all, struct fault *fault)
{
    return signal > 0 && signal <= 64 && !all ? true : refuse(fault, GENERIC, "stub");
}
int64_t container_oom_kills(void) { return 0; }
bool container_stop(void) { return false; }
void log_credit(int64_t bytes) { touched += (size_t)bytes; }
int64_t log_written(void) { return 0; }
bool volumes_freeze(struct port *port, const char *device, int timeout_s, struct fault *fault)
{
    (void)fault;
    touch(device);
    if (timeout_s < 1)
        abort();
    late = port;
    return true;
}
bool volumes_thaw(struct port *port, struct fault *fault)
{
    (void)fault;
    late = port;
    return true;
}
void machine_end(void) { abort(); } /* the corpus leaves guest-shutdown out */
bool clock_set(int64_t time_ns, struct fault *fault) { return time_ns >= 0 || refuse(fault, GENERIC, "stub"); }
bool clock_slew(int64_t time_ns, struct fault *fault) { return clock_set(time_ns, fault); }
bool identity_set(const struct identity_request *request, struct fault *fault)
{
    touch(request->machine_id);
    touch(request->hostname);
    touch(request->interface);
    for (int i = 0; i < request->dns_count; i++)
        touch(request->dns[i]);
    for (int i = 0; i < request->hosts_count; i++) {
        touch(request->hosts[i].address);
        touch(request->hosts[i].name);
    }
    if (request->entropy_bytes < 0 || request->entropy_bytes > (int)sizeof request->entropy)
        abort();
    accepted++;
    (void)fault;
    return true;
}
void stats_read(const struct read_request *request, struct buffer *out)
{
    for (int i = 0; i < request->files_count; i++)
        touch(request->files[i]);
    for (int i = 0; i < request->statvfs_count; i++)
        touch(request->statvfs[i]);
    accepted++;
    buffer_text(out, "{}");
}

bool fetch_start(const struct fetch_request *request, struct fault *fault)
{
    (void)fault;
    touch(request->send);
    if (strlen(request->send) > FETCH_SEND_BYTES || request->max_bytes < 1 || request->max_bytes > FETCH_MAX_BYTES ||
        request->port < 1 || request->port > 65535 || request->deadline_ms < 1)
        abort();
    accepted++;
    return true;
}
bool fetch_result(int64_t number, int64_t offset, int64_t max_bytes, struct buffer *out, struct fault *fault)
{
    if (number < 1 || offset < 0 || max_bytes < 1)
        abort();
    buffer_text(out, "{}");
    (void)fault;
    return true;
}

/* --- input */
static const char *const corpus[] = {
    "{\"execute\": \"guest-ping\"}\n",
    "\xff{\"execute\": \"guest-sync-delimited\", \"arguments\": {\"id\": 4711}, \"id\": {\"a\": [1.5e3, null]}}\n",
    "{\"execute\": \"guest-info\", \"id\": \"\\u00e9\\ud83d\\ude00\"}\n",
    "{\"execute\": \"hyper-status\"}\r\n",
    "{\"execute\": \"guest-set-time\", \"arguments\": {\"time\": 1700000000000000000}}\n",
    "{\"execute\": \"guest-set-time\", \"arguments\": {\"time\": 1700000000000000000, \"slew\": true}}\n",
    "{\"execute\": \"hyper-read\", \"arguments\": {\"files\": [\"/proc/stat\", \"/sys/fs/cgroup/../x\"], \"statvfs\": "
    "[\"/\"], \"max_bytes\": 65536}}\n",
    "{\"execute\": \"hyper-identity\", \"arguments\": {\"time_ns\": 1, \"entropy\": "
    "\"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5eg==\", \"machine_id\": "
    "\"0123456789abcdef0123456789abcdef\", \"hostname\": \"web-1\", \"network\": {\"interface\": \"eth0\", \"mac\": "
    "\"52:54:0a:61:00:02\", \"address\": \"10.97.0.2\", \"prefix\": 16, \"gateway\": \"10.97.0.1\", \"mtu\": 1500}, "
    "\"dns\": [\"10.97.0.1\", \"::1\"], \"search\": [\"a.b\"], \"hosts\": [[\"10.97.0.2\", \"web\"]]}}\n",
    "{\"execute\": \"hyper-start\", \"arguments\": {\"root\": {\"image\": {\"device\": \"vda\", \"fstype\": \"erofs\"}, "
    "\"writable\": {\"device\": \"vdb\", \"fstype\": \"ext4\", \"options\": \"discard\"}, \"read_only\": false}, \"tmpfs\": "
    "[{\"path\": \"/tmp\", \"options\": \"size=1m\"}], \"args\": [\"sh\", \"-c\", \"echo \\\"hi\\\"\\n\"], \"env\": [\"A=b\"], "
    "\"cwd\": \"/x\", \"user\": \"nobody:nogroup\", \"tty\": false, \"stdin\": true, \"cgroup\": {\"memory_max\": 67108864, "
    "\"cpu_quota_us\": null, \"pids_max\": 10}, \"rehearse\": true, \"mounts\": [{\"device\": \"vdc\", \"fstype\": \"ext4\", "
    "\"path\": \"/data\", \"options\": \"discard\", \"directory\": \"data\", \"read_only\": true, \"copy\": true}]}}\n",
    "{\"execute\": \"hyper-layer\", \"arguments\": {\"writable\": {\"device\": \"vdb\", \"fstype\": \"ext4\", "
    "\"options\": \"discard\", \"remount\": \"barrier\"}, \"image\": {\"device\": \"vda\", \"fstype\": \"erofs\"}, "
    "\"program\": \"sh\", \"path\": \"/bin:/usr/bin\"}}\n",
    "{\"execute\": \"hyper-archive\", \"arguments\": {\"session\": 9, \"kind\": \"get\", \"path\": \"/etc\", \"exclude\": "
    "[\"/proc\"]}}\n",
    "{\"execute\": \"hyper-freeze\", \"arguments\": {\"device\": \"vdc\", \"hold_s\": 30}}\n",
    "{\"execute\": \"hyper-thaw\"}\n",
    "{\"execute\": \"hyper-fetch\", \"arguments\": {\"fetch\": 7, \"port\": 80, \"send\": \"GET / HTTP/1.0\\r\\n\\r\\n\", "
    "\"deadline_ms\": 5000, \"max_bytes\": 65536}}\n",
    "{\"execute\": \"hyper-fetched\", \"arguments\": {\"fetch\": 7, \"offset\": 0, \"max_bytes\": 131072}}\n",
    "{\"execute\": \"hyper-log-credit\", \"arguments\": {\"credit\": 1048576}}\n",
    "{\"execute\": \"hyper-exec\", \"arguments\": {\"session\": 7, \"args\": [\"ls\", \"-l\"], \"env\": [], \"tty\": true, "
    "\"rows\": 24, \"cols\": 80}, \"id\": [true, false, \"x\"]}\n",
    "{\"execute\": \"hyper-signal\", \"arguments\": {\"signal\": 15, \"all\": false}}\n",
    "{\"execute\": \"hyper-resize\", \"arguments\": {\"session\": 0, \"rows\": 1, \"cols\": 2}}\n",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]\n",
    "{\"execute\": \"\\ud800\", \"arguments\": {\"\\u0000\": -0.5E-7}}\n",
};
static const char *const pieces[] = {"\"", "\\", "{", "}", "[", "]", ",", ":", "null", "true", "-", "1e9", "\\u", "\\ud800",
                                     "99999999999999999999", "-9223372036854775808", "\n", "\xff", "\xc3\xa9", "\xf0\x9f",
                                     "\xed\xa0\x80", "=", "/", "..", "%s%n", "\x01", "\"execute\"", "{}"};
#define COUNT(list) (sizeof(list) / sizeof *(list))

static size_t mutate(char *data, size_t room)
{
    const char *seed = corpus[below(COUNT(corpus))];
    size_t length = strlen(seed);
    memcpy(data, seed, length);
    for (uint32_t steps = below(8); steps > 0 && length > 0; steps--) {
        size_t at = below((uint32_t)length);
        const char *piece = pieces[below(COUNT(pieces))];
        size_t size = strlen(piece), cut = 1 + below(16);
        switch (below(6)) {
        case 0: data[at] = (char)below(256); break;
        case 1: data[at] ^= (char)(1 << below(8)); break;
        case 2: /* put in */
        case 3:
            if (length + size <= room) {
                memmove(data + at + size, data + at, length - at);
                memcpy(data + at, piece, size);
                length += size;
            }
            break;
        case 4: /* cut out */
            cut = cut < length - at ? cut : length - at;
            memmove(data + at, data + at + cut, length - at - cut);
            length -= cut;
            break;
        default: /* repeat a part many times: lists and nesting beyond their limits */
            for (uint32_t times = below(200); times > 0 && length + cut <= room && at + cut <= length; times--) {
                memmove(data + at + cut, data + at, length - at);
                length += cut;
            }
        }
    }
    return length;
}

static size_t take_answers(int fd)
{
    static char data[1 << 20];
    ssize_t got, all = 0;
    while ((got = read(fd, data, sizeof data)) > 0) {
        all += got;
        for (ssize_t i = 0; i < got; i++) {
            unsigned char c = (unsigned char)data[i];
            answers += c == '\n';
            if (c != '\n' && c != 0xFF && (c < 0x20 || c > 0x7E)) {
                fprintf(stderr, "byte 0x%02x in an answer\n", c);
                abort();
            }
        }
    }
    return (size_t)all;
}

static void feed(int fd, const char *data, size_t length, struct port *port)
{
    while (length) {
        size_t part = 1 + below(4096);
        ssize_t sent = write(fd, data, part < length ? part : length);
        if (sent > 0) {
            data += sent;
            length -= (size_t)sent;
        } else if (errno != EAGAIN) {
            abort();
        }
        do {
            port->source.readable = port->source.writable = true;
            while (port_pump(port) || late) {
                if (late)
                    port_answer(late, "{\"pid\": 1}", NULL);
                late = NULL;
            }
        } while (take_answers(fd));
    }
}

static void fuzz_streams(int fd, struct port *unused)
{
    unsigned char frame[12 + 64];
    (void)unused;
    for (int i = 0; i < 50; i++) {
        uint32_t session = below(4), length = below(20) ? below(64) : (uint32_t)below(0x7FFFFFFF) * 2;
        memset(frame, (int)below(256), sizeof frame);
        memcpy(frame, &session, 4);
        frame[4] = (unsigned char)below(8);
        frame[5] = (unsigned char)below(4);
        memcpy(frame + 8, &length, 4);
        size_t size = 12 + (length <= 64 ? length : 64);
        if (write(fd, frame, below(10) ? size : below((uint32_t)size)) < 0 && errno != EAGAIN)
            abort();
        for (int turn = 0; turn < 100 && streams_pump(); turn++)
            ;
        char away[65536];
        while (read(fd, away, sizeof away) > 0)
            ;
    }
}

int main(int count, char **args)
{
    static struct port ports[2];
    static char data[1 << 16], flood[1 << 16];
    int ends[2][2], streams[2];
    time_t end = time(NULL) + (count > 2 ? atoi(args[2]) : 1);
    state = count > 1 ? strtoull(args[1], NULL, 10) : 1;
    for (int i = 0; i < 2; i++) {
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends[i]) != 0)
            return 1;
        port_open(&ports[i], ends[i][1], i == 1);
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, streams) != 0)
        return 1;
    memset(flood, 'x', sizeof flood);
    for (long round = 0; time(NULL) < end; round++) {
        int which = (int)below(2);
        container.state = below(4);
        if (round % 5000 == 4999) /* a line that is too long */
            for (int i = 0; i < 17; i++)
                feed(ends[which][0], flood, sizeof flood, &ports[which]);
        size_t length = mutate(data, sizeof data);
        /* A fault of ours must not end the run: no shutdown by chance. */
        if (memmem(data, length, "guest-shutdown", 14))
            continue;
        feed(ends[which][0], data, length, &ports[which]);
        requests++;
        if (round % 50 == 0) {
            streams_open(streams[1]);
            fuzz_streams(streams[0], NULL);
        }
    }
    /* Whatever came before, the ports still answer. */
    for (int i = 0; i < 2; i++) {
        static const char ping[] = "\xff{\"execute\": \"guest-ping\"}\n";
        long before = answers;
        feed(ends[i][0], ping, sizeof ping - 1, &ports[i]);
        if (answers != before + 1) {
            fprintf(stderr, "port %d answered %ld times to the last ping\n", i, answers - before);
            abort();
        }
    }
    printf("%ld requests, %ld answers, %ld accepted\n", requests, answers, accepted);
    return 0;
}
