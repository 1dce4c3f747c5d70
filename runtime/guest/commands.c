/* The table of commands, and those that are answered on the spot. */
#include "hyper.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define USUAL_BYTES 16384 /* of a request's parsed form; a longer one takes more memory then */

struct call {
    struct port *port;
    const struct json_node *arguments;
    struct buffer *out;
    struct fault *fault;
};

/* One request is looked at at a time: what was parsed is not needed once its command has returned. */
static struct json json;

static void put_member(struct buffer *out, const char *name, int64_t value)
{
    buffer_text(out, name);
    buffer_int(out, value);
}

static enum outcome run_sync(struct call *call)
{
    int64_t id;
    if (want_int(&json, call->arguments, "id", INT64_MIN, INT64_MAX, NULL, &id, call->fault))
        buffer_int(call->out, id);
    return DONE;
}

static enum outcome run_ping(struct call *call)
{
    buffer_text(call->out, "{}");
    return DONE;
}

static enum outcome run_get_time(struct call *call)
{
    buffer_int(call->out, now_ns(CLOCK_REALTIME));
    return DONE;
}

static enum outcome run_set_time(struct call *call)
{
    int64_t time_ns;
    bool slew;
    if (!want_int(&json, call->arguments, "time", 0, INT64_MAX, NULL, &time_ns, call->fault) ||
        !want_bool(&json, call->arguments, "slew", &slew, call->fault))
        return DONE;
    if (slew)
        clock_slew(time_ns, call->fault);
    else
        clock_set(time_ns, call->fault);
    return DONE;
}

static enum outcome run_status(struct call *call)
{
    static const char *const states[] = {"idle", "idle", "running", "exited"};
    bool exited = container.state == EXITED, lived = exited || container.state == RUNNING;
    struct buffer *out = call->out;
    buffer_text(out, "{\"state\": \"");
    buffer_text(out, states[container.state]);
    put_member(out, "\", \"pid\": ", lived ? container.pid : 0);
    if (exited)
        put_member(out, ", \"exit_code\": ", container.exit_code);
    else
        buffer_text(out, ", \"exit_code\": null");
    if (exited && container.signal)
        put_member(out, ", \"signal\": ", container.signal);
    else
        buffer_text(out, ", \"signal\": null");
    buffer_text(out, exited && container.oom_killed ? ", \"oom_killed\": true" : ", \"oom_killed\": false");
    put_member(out, ", \"oom_kills\": ", container_oom_kills());
    put_member(out, ", \"started_ns\": ", lived ? container.started_ns : 0);
    put_member(out, ", \"finished_ns\": ", exited ? container.finished_ns : 0);
    put_member(out, ", \"boot_ns\": ", boot_ns);
    buffer_text(out, "}");
    return DONE;
}

static enum outcome run_read(struct call *call)
{
    struct read_request request = {.stats = call->port->stats};
    if (parse_read(&json, call->arguments, &request, call->fault))
        stats_read(&request, call->out);
    return DONE;
}

static enum outcome run_fetch(struct call *call)
{
    struct fetch_request request;
    if (parse_fetch(&json, call->arguments, &request, call->fault))
        fetch_start(&request, call->fault);
    return DONE;
}

static enum outcome run_fetched(struct call *call)
{
    int64_t number, offset, max_bytes, start = 0, usual = 65536;
    if (want_int(&json, call->arguments, "fetch", 1, INT32_MAX, NULL, &number, call->fault) &&
        want_int(&json, call->arguments, "offset", 0, INT32_MAX, &start, &offset, call->fault) &&
        want_int(&json, call->arguments, "max_bytes", 1, 262144, &usual, &max_bytes, call->fault))
        fetch_result(number, offset, max_bytes, call->out, call->fault);
    return DONE;
}

static enum outcome run_shutdown(struct call *call)
{
    const char *mode;
    if (!want_text(&json, call->arguments, "mode", "powerdown", &mode, call->fault))
        return DONE;
    if (strcmp(mode, "powerdown") != 0 && strcmp(mode, "halt") != 0 && strcmp(mode, "reboot") != 0)
        refuse(call->fault, INVALID, "mode: powerdown, halt or reboot expected");
    else if (!container_stop())
        machine_end();
    else
        return LATER; /* never: the VM ends with the container */
    return DONE;
}

static struct identity_request identity;

static enum outcome run_identity(struct call *call)
{
    identity = (struct identity_request){.time_ns = -1};
    if (parse_identity(&json, call->arguments, &identity, call->fault))
        identity_set(&identity, call->fault);
    return DONE;
}

void commands_prepare(void)
{
    memset(&identity, 0, sizeof identity);
    memset(&json, 0, USUAL_BYTES);
    memset(container_request(), 0, sizeof(struct start_request));
}

static enum outcome run_start(struct call *call)
{
    struct start_request *request = container_request();
    memset(request, 0, sizeof *request);
    if (!parse_start(&json, call->arguments, request, call->fault))
        return DONE;
    return container_start(call->port, call->fault) ? LATER : DONE;
}

static enum outcome run_layer(struct call *call)
{
    struct start_request *request = container_request();
    memset(request, 0, sizeof *request);
    if (!parse_layer(&json, call->arguments, request, call->fault))
        return DONE;
    return container_layer(call->port, call->fault) ? LATER : DONE;
}

static enum outcome run_exec(struct call *call)
{
    static struct exec_request request;
    memset(&request, 0, sizeof request);
    if (!parse_exec(&json, call->arguments, &request, call->fault))
        return DONE;
    return container_exec(call->port, &request, call->fault) ? LATER : DONE;
}

static enum outcome run_signal(struct call *call)
{
    int64_t signal;
    bool all;
    if (want_int(&json, call->arguments, "signal", 1, 64, NULL, &signal, call->fault) &&
        want_bool(&json, call->arguments, "all", &all, call->fault))
        container_signal((int)signal, all, call->fault);
    return DONE;
}

static enum outcome run_log_credit(struct call *call)
{
    int64_t credit;
    if (want_int(&json, call->arguments, "credit", 0, INT64_MAX, NULL, &credit, call->fault)) {
        log_credit(credit);
        put_member(call->out, "{\"written\": ", log_written());
        buffer_text(call->out, "}");
    }
    return DONE;
}

static enum outcome run_resize(struct call *call)
{
    int64_t session, rows, columns, zero = 0;
    if (want_int(&json, call->arguments, "session", 0, INT32_MAX, &zero, &session, call->fault) &&
        want_int(&json, call->arguments, "rows", 1, 65535, NULL, &rows, call->fault) &&
        want_int(&json, call->arguments, "cols", 1, 65535, NULL, &columns, call->fault))
        streams_resize((uint32_t)session, (int)rows, (int)columns, call->fault);
    return DONE;
}

static enum outcome run_freeze(struct call *call)
{
    int64_t timeout_s, usual = 30;
    const char *device;
    if (!want_text(&json, call->arguments, "device", NULL, &device, call->fault) ||
        !want_int(&json, call->arguments, "hold_s", 1, 600, &usual, &timeout_s, call->fault))
        return DONE;
    if (strlen(device) != 3 || strncmp(device, "vd", 2) != 0 || device[2] < 'b' || device[2] > 'z') {
        refuse(call->fault, INVALID, "device: a disk expected, such as vdc");
        return DONE;
    }
    return volumes_freeze(call->port, device, (int)timeout_s, call->fault) ? LATER : DONE;
}

static enum outcome run_thaw(struct call *call)
{
    return volumes_thaw(call->port, call->fault) ? LATER : DONE;
}

static enum outcome run_archive(struct call *call)
{
    static struct exec_request request;
    static const struct { const char *name; enum builtin builtin; } kinds[] = {
        {"get", BUILTIN_GET}, {"put", BUILTIN_PUT}, {"changes", BUILTIN_CHANGES}, {"layer", BUILTIN_LAYER}};
    int64_t session;
    const char *kind, *path;
    struct process_request *process = &request.process;
    memset(&request, 0, sizeof request);
    if (!want_int(&json, call->arguments, "session", 1, INT32_MAX, NULL, &session, call->fault) ||
        !want_text(&json, call->arguments, "kind", NULL, &kind, call->fault) ||
        !want_text(&json, call->arguments, "path", "/", &path, call->fault) ||
        !want_texts(&json, call->arguments, "exclude", process->args + 1, MAX_ARGS - 1, &process->args_count,
                    call->fault))
        return DONE;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kind, kinds[i].name) == 0)
            process->builtin = kinds[i].builtin;
    if (!process->builtin || path[0] != '/' || strlen(path) > 4000) {
        refuse(call->fault, INVALID, "kind: get, put, changes or layer; path: an absolute path");
        return DONE;
    }
    process->args[0] = path;
    process->args_count++;
    process->cwd = process->user = "";
    process->want_stdin = process->builtin == BUILTIN_PUT;
    request.session = (uint32_t)session;
    return container_exec(call->port, &request, call->fault) ? LATER : DONE;
}

static enum outcome run_info(struct call *call);

static const struct command {
    const char *name;
    bool stats; /* allowed on the stats port */
    bool answers;
    enum outcome (*run)(struct call *call);
} commands[] = {
    {"guest-sync", true, true, run_sync},
    {"guest-sync-delimited", true, true, run_sync},
    {"guest-ping", true, true, run_ping},
    {"guest-info", true, true, run_info},
    {"guest-get-time", true, true, run_get_time},
    {"hyper-status", true, true, run_status},
    {"hyper-read", true, true, run_read},
    {"hyper-fetch", true, true, run_fetch},
    {"hyper-fetched", true, true, run_fetched},
    {"guest-set-time", false, true, run_set_time},
    {"guest-shutdown", false, false, run_shutdown},
    {"hyper-identity", false, true, run_identity},
    {"hyper-layer", false, true, run_layer},
    {"hyper-start", false, true, run_start},
    {"hyper-signal", false, true, run_signal},
    {"hyper-exec", false, true, run_exec},
    {"hyper-resize", false, true, run_resize},
    {"hyper-archive", false, true, run_archive},
    {"hyper-freeze", false, true, run_freeze},
    {"hyper-thaw", false, true, run_thaw},
    {"hyper-log-credit", false, true, run_log_credit},
};
#define COMMANDS (sizeof commands / sizeof *commands)

static enum outcome run_info(struct call *call)
{
    bool first = true;
    buffer_text(call->out, "{\"version\": \"" HYPER_VERSION "\", \"supported_commands\": [");
    for (size_t i = 0; i < COMMANDS; i++) {
        if (call->port->stats && !commands[i].stats)
            continue;
        buffer_text(call->out, first ? "{\"name\": \"" : ", {\"name\": \"");
        buffer_text(call->out, commands[i].name);
        buffer_text(call->out, "\", \"enabled\": true, \"success-response\": ");
        buffer_text(call->out, commands[i].answers ? "true}" : "false}");
        first = false;
    }
    buffer_text(call->out, "]}");
    return DONE;
}

/* The `id` member is kept as text: an answer that comes later needs it when the request is gone. */
static bool keep_id(struct port *port, const struct json_node *request, struct fault *fault)
{
    const struct json_node *id = json_get(&json, request, "id");
    if (!id)
        return true;
    struct buffer text = {.limit = ID_MAX_BYTES - 1};
    buffer_node(&text, &json, id);
    bool good = !text.failed;
    if (good) {
        memcpy(port->id, text.data, text.length);
        port->id[text.length] = '\0';
    }
    buffer_free(&text);
    return good || refuse(fault, INVALID, "id: longer than %d bytes", ID_MAX_BYTES - 1);
}

enum outcome command_run(struct port *port, char *line, size_t length, struct buffer *out, struct fault *fault)
{
    const char *error = json_parse(&json, line, length);
    const struct json_node *request = &json.nodes[0];
    if (error) {
        refuse(fault, GENERIC, "invalid JSON: %s", error);
        return DONE;
    }
    if (request->type != JSON_OBJECT) {
        refuse(fault, GENERIC, "a request is an object");
        return DONE;
    }
    if (!keep_id(port, request, fault))
        return DONE;
    const struct json_node *name = json_get(&json, request, "execute");
    const struct json_node *arguments = json_get(&json, request, "arguments");
    if (!name || name->type != JSON_STRING) {
        refuse(fault, GENERIC, "execute: the name of a command expected");
        return DONE;
    }
    if (arguments && arguments->type != JSON_OBJECT) {
        refuse(fault, INVALID, "arguments: an object expected");
        return DONE;
    }
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(name->text, commands[i].name) != 0 || (port->stats && !commands[i].stats))
            continue;
        if (strcmp(name->text, "guest-sync-delimited") == 0)
            port->delimited = true;
        return commands[i].run(&(struct call){port, arguments, out, fault});
    }
    refuse(fault, "CommandNotFound", "The command %.100s has not been found", name->text);
    return DONE;
}
