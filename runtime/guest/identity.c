/* Who this guest is: clock, entropy, names, files for the container. A clone is its template until this has run. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* In place: a running container has the file bind-mounted. */
static bool put_file(const char *name, const struct buffer *text, struct fault *fault)
{
    char path[64];
    snprintf(path, sizeof path, ETC_DIR "/%s", name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool good = fd >= 0 && !text->failed && write(fd, text->data, text->length) == (ssize_t)text->length;
    int error = errno;
    if (fd >= 0)
        close(fd);
    return good || refuse(fault, GENERIC, "cannot write %s: %s", path, strerror(error));
}

bool clock_set(int64_t time_ns, struct fault *fault)
{
    struct timeval time = {.tv_sec = time_ns / 1000000000, .tv_usec = time_ns % 1000000000 / 1000};
    return settimeofday(&time, NULL) == 0 || refuse(fault, GENERIC, "cannot set the clock: %s", strerror(errno));
}

/* Without a jump, by half a millisecond a second at most (adjtime(3)): time does not go back for any program. */
bool clock_slew(int64_t time_ns, struct fault *fault)
{
    int64_t delta_us = (time_ns - now_ns(CLOCK_REALTIME)) / 1000;
    struct timeval delta = {.tv_sec = delta_us / 1000000, .tv_usec = delta_us % 1000000};
    return adjtime(&delta, NULL) == 0 || refuse(fault, GENERIC, "cannot slew the clock: %s", strerror(errno));
}

static bool add_entropy(const struct identity_request *request, struct fault *fault)
{
    struct {
        struct rand_pool_info info;
        unsigned char bytes[sizeof request->entropy];
    } pool = {.info = {.entropy_count = request->entropy_bytes * 8, .buf_size = request->entropy_bytes}};
    memcpy(pool.info.buf, request->entropy, (size_t)request->entropy_bytes);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    /* Without the reseed the generator goes on from the state that all clones share. */
    bool good = fd >= 0 && ioctl(fd, RNDADDENTROPY, &pool) == 0 && ioctl(fd, RNDRESEEDCRNG) == 0;
    int error = errno;
    if (fd >= 0)
        close(fd);
    explicit_bzero(&pool, sizeof pool);
    return good || refuse(fault, GENERIC, "cannot reseed the random generator: %s", strerror(error));
}

static bool put_names(const struct identity_request *request, struct fault *fault)
{
    struct buffer text = {.limit = 65536};
    bool good = true;
    if (request->hostname[0]) {
        if (sethostname(request->hostname, strlen(request->hostname)) != 0)
            return refuse(fault, GENERIC, "cannot set the host name: %s", strerror(errno));
        buffer_text(&text, request->hostname);
        buffer_text(&text, "\n");
        good = put_file("hostname", &text, fault);
        buffer_free(&text);
    }
    if (good && request->machine_id[0]) {
        buffer_text(&text, request->machine_id);
        buffer_text(&text, "\n");
        good = put_file("machine-id", &text, fault);
        buffer_free(&text);
    }
    return good;
}

static bool put_resolver(const struct identity_request *request, struct fault *fault)
{
    struct buffer text = {.limit = 65536};
    for (int i = 0; i < request->dns_count; i++) {
        buffer_text(&text, "nameserver ");
        buffer_text(&text, request->dns[i]);
        buffer_text(&text, "\n");
    }
    for (int i = 0; i < request->search_count; i++) {
        buffer_text(&text, i ? " " : "search ");
        buffer_text(&text, request->search[i]);
    }
    buffer_text(&text, request->search_count ? "\n" : "");
    bool good = put_file("resolv.conf", &text, fault);
    buffer_free(&text);
    if (!good)
        return false;
    buffer_text(&text, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (int i = 0; i < request->hosts_count; i++) {
        buffer_text(&text, request->hosts[i].address);
        buffer_text(&text, "\t");
        buffer_text(&text, request->hosts[i].name);
        buffer_text(&text, "\n");
    }
    good = put_file("hosts", &text, fault);
    buffer_free(&text);
    return good;
}

bool identity_set(const struct identity_request *request, struct fault *fault)
{
    return (request->time_ns < 0 || clock_set(request->time_ns, fault)) &&
           (request->entropy_bytes == 0 || add_entropy(request, fault)) && put_names(request, fault) &&
           put_resolver(request, fault) && (!request->network || network_set(request, fault));
}
