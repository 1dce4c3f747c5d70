/* A JSON port: requests in, answers out, in order, one at a time.
 *
 * A request is only looked at once the answer before it has gone, so a host that does not read its answers holds up its
 * own port and costs a bounded amount of memory. */
#include "hyper.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SHORT_ANSWER_BYTES 1024
#define WRITE_BYTES 32768 /* virtio-serial takes no more in one write */

void port_open(struct port *port, int fd, bool stats)
{
    port->stats = stats;
    port->out.limit = REPLY_MAX_BYTES + 4096; /* the frame around a body, and an error */
    source_open(&port->source, fd);
}

static void put_id(struct port *port)
{
    if (port->id[0]) {
        buffer_text(&port->out, ", \"id\": ");
        buffer_text(&port->out, port->id);
    }
    buffer_text(&port->out, "}\n");
}

void port_answer(struct port *port, const char *body, const struct fault *fault)
{
    port->waiting = false;
    if (body) {
        buffer_text(&port->out, "{\"return\": ");
        buffer_text(&port->out, body);
    } else {
        buffer_text(&port->out, "{\"error\": {\"class\": ");
        buffer_quoted(&port->out, fault->class, strlen(fault->class));
        buffer_text(&port->out, ", \"desc\": ");
        buffer_quoted(&port->out, fault->text, strlen(fault->text));
        buffer_text(&port->out, "}");
    }
    put_id(port);
}

static void run(struct port *port, char *line, size_t length)
{
    struct fault fault = {0};
    size_t before = port->out.length;
    port->id[0] = '\0';
    port->delimited = false;
    buffer_text(&port->out, "{\"return\": ");
    size_t body = port->out.length;
    if (command_run(port, line, length, &port->out, &fault) == LATER) {
        port->out.length = before;
        port->waiting = true;
        return;
    }
    if (!fault.class && port->out.failed)
        refuse(&fault, GENERIC, "the answer is larger than %d bytes, or memory is short", REPLY_MAX_BYTES);
    if (fault.class) {
        port->out.length = before;
        port->out.failed = false;
        port_answer(port, NULL, &fault);
        return;
    }
    if (port->out.length == body)
        buffer_text(&port->out, "{}");
    put_id(port);
    if (port->delimited) {
        /* The opening brace moves by one; a failed append has been answered above. */
        buffer_bytes(&port->out, "\n", 1);
        memmove(port->out.data + before + 1, port->out.data + before, port->out.length - before - 1);
        port->out.data[before] = (char)0xFF;
    }
}

static bool send_some(struct port *port)
{
    size_t left = port->out.length - port->out_sent;
    if (!left || !port->source.writable)
        return false;
    ssize_t sent = write(port->source.fd, port->out.data + port->out_sent, left < WRITE_BYTES ? left : WRITE_BYTES);
    if (sent < 0) {
        port->source.writable = errno == EINTR;
        return port->source.writable;
    }
    port->out_sent += (size_t)sent;
    if (port->out_sent == port->out.length) {
        buffer_free(&port->out);
        port->out_sent = 0;
    }
    return true;
}

static bool read_some(struct port *port)
{
    if (!port->source.readable)
        return false;
    size_t room;
    char *space = line_space(&port->in, &room);
    ssize_t got = read(port->source.fd, space, room < WRITE_BYTES ? room : WRITE_BYTES);
    if (got > 0) {
        line_added(&port->in, (size_t)got);
        return true;
    }
    port->source.readable = got < 0 && errno == EINTR;
    if (got == 0) { /* the host has closed the port: neither half a request nor half an answer outlives that */
        port->in.start = port->in.scan = port->in.end = 0;
        port->in.skipping = false;
        /* A short answer that is whole may be to a host that has connected again: its request can be here before the
         * word of that is. If it is not, the next one skips it when it synchronises. */
        if (port->out_sent || port->out.length > SHORT_ANSWER_BYTES) {
            buffer_free(&port->out);
            port->out_sent = 0;
        }
    }
    return port->source.readable;
}

bool port_pump(struct port *port)
{
    if (port->source.fd < 0)
        return false;
    if (send_some(port))
        return true;
    if (port->out.length) { /* a host that went away takes no more: reading tells */
        return port->in.end < LINE_MAX_BYTES && read_some(port);
    }
    if (port->waiting)
        return false;
    char *line;
    size_t length;
    switch (line_next(&port->in, &line, &length)) {
    case LINE_READY:
        while (length && (line[length - 1] == '\r' || line[length - 1] == ' '))
            line[--length] = '\0';
        if (length)
            run(port, line, length);
        return true;
    case LINE_TOO_LONG: {
        struct fault fault = {0};
        port->id[0] = '\0';
        refuse(&fault, GENERIC, "the request is longer than %d bytes", LINE_MAX_BYTES);
        port_answer(port, NULL, &fault);
        return true;
    }
    default: return read_some(port);
    }
}
