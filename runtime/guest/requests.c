/* What hyper-start, hyper-exec and hyper-read ask for, checked before anything is done. */
#include "hyper.h"

#include <stdio.h>
#include <string.h>

#define MAX_OPTIONS 1024
#define MAX_PATH 4096

static bool is_word(const char *text) /* a device or file system name: goes into a path */
{
    size_t length = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_-");
    return length > 0 && length < 32 && text[length] == '\0';
}

static bool want_absolute(const char *name, const char *path, struct fault *fault)
{
    if (path[0] != '/' || strlen(path) >= MAX_PATH)
        return refuse(fault, INVALID, "%s: an absolute path of less than %d bytes expected", name, MAX_PATH);
    return true;
}

static bool parse_process(const struct json *json, const struct json_node *from, struct process_request *process,
                          struct fault *fault)
{
    int64_t rows, columns, zero = 0;
    if (!want_texts(json, from, "args", process->args, MAX_ARGS, &process->args_count, fault) ||
        !want_texts(json, from, "env", process->env, MAX_ENV, &process->env_count, fault) ||
        !want_text(json, from, "cwd", "", &process->cwd, fault) ||
        !want_text(json, from, "user", "", &process->user, fault) ||
        !want_bool(json, from, "tty", &process->tty, fault) ||
        !want_bool(json, from, "stdin", &process->want_stdin, fault) ||
        !want_int(json, from, "rows", 0, 65535, &zero, &rows, fault) ||
        !want_int(json, from, "cols", 0, 65535, &zero, &columns, fault))
        return false;
    process->rows = (int)rows;
    process->columns = (int)columns;
    if (process->args_count == 0 || process->args[0][0] == '\0')
        return refuse(fault, INVALID, "args: the program to run is missing");
    if (process->cwd[0] && !want_absolute("cwd", process->cwd, fault))
        return false;
    if (strlen(process->user) > 256)
        return refuse(fault, INVALID, "user: longer than 256 bytes");
    for (int i = 0; i < process->env_count; i++)
        if (process->env[i][0] == '=' || !process->env[i][0])
            return refuse(fault, INVALID, "env: NAME=VALUE or NAME expected, not '%.80s'", process->env[i]);
    return true;
}

static bool parse_device(const struct json *json, const struct json_node *from, const char *what, const char **device,
                         const char **type, struct fault *fault)
{
    if (!want_text(json, from, "device", NULL, device, fault) || !want_text(json, from, "fstype", NULL, type, fault))
        return false;
    if (!is_word(*device) || !is_word(*type))
        return refuse(fault, INVALID, "%s: device and fstype are names like vda and ext4", what);
    return true;
}

static bool parse_writable(const struct json *json, const struct json_node *object, struct start_request *request,
                           struct fault *fault)
{
    const struct json_node *writable = json_get(json, object, "writable");
    if (!writable || writable->type == JSON_NULL)
        return true;
    if (writable->type != JSON_OBJECT)
        return refuse(fault, INVALID, "writable: an object or null expected");
    if (!parse_device(json, writable, "writable", &request->writable_device, &request->writable_type, fault) ||
        !want_text(json, writable, "options", "", &request->writable_options, fault) ||
        !want_text(json, writable, "remount", "", &request->writable_remount, fault))
        return false;
    if (strlen(request->writable_options) > MAX_OPTIONS || strlen(request->writable_remount) > MAX_OPTIONS)
        return refuse(fault, INVALID, "writable.options: longer than %d bytes", MAX_OPTIONS);
    return true;
}

bool parse_layer(const struct json *json, const struct json_node *object, struct start_request *request,
                 struct fault *fault)
{
    const struct json_node *image = json_get(json, object, "image");
    if (!parse_writable(json, object, request, fault) ||
        !want_text(json, object, "program", "", &request->warm_program, fault) ||
        !want_text(json, object, "path", "", &request->warm_path, fault))
        return false;
    if (!image || image->type == JSON_NULL)
        return true;
    if (image->type != JSON_OBJECT || !request->writable_device)
        return refuse(fault, INVALID, "image: an object expected, and writable with it");
    return parse_device(json, image, "image", &request->image_device, &request->image_type, fault);
}

static bool parse_root(const struct json *json, const struct json_node *root, struct start_request *request,
                       struct fault *fault)
{
    const struct json_node *image = json_get(json, root, "image");
    if (!image || image->type != JSON_OBJECT)
        return refuse(fault, INVALID, "root.image: an object expected");
    return parse_device(json, image, "root.image", &request->image_device, &request->image_type, fault) &&
           want_bool(json, root, "read_only", &request->read_only, fault) && parse_writable(json, root, request, fault);
}

static bool parse_tmpfs(const struct json *json, const struct json_node *list, struct start_request *request,
                        struct fault *fault)
{
    if (!list || list->type == JSON_NULL)
        return true;
    if (list->type != JSON_ARRAY || list->length > MAX_TMPFS)
        return refuse(fault, INVALID, "tmpfs: a list of at most %d objects expected", MAX_TMPFS);
    const struct json_node *item = json_first(list);
    for (uint32_t i = 0; i < list->length; i++, item = json_next(json, item)) {
        if (!want_text(json, item, "path", NULL, &request->tmpfs[i].path, fault) ||
            !want_text(json, item, "options", "", &request->tmpfs[i].options, fault) ||
            !want_absolute("tmpfs.path", request->tmpfs[i].path, fault))
            return false;
        if (strlen(request->tmpfs[i].options) > MAX_OPTIONS)
            return refuse(fault, INVALID, "tmpfs.options: longer than %d bytes", MAX_OPTIONS);
    }
    request->tmpfs_count = (int)list->length;
    return true;
}

static bool parse_mounts(const struct json *json, const struct json_node *list, struct start_request *request,
                         struct fault *fault)
{
    if (!list || list->type == JSON_NULL)
        return true;
    if (list->type != JSON_ARRAY || list->length > MAX_MOUNTS)
        return refuse(fault, INVALID, "mounts: a list of at most %d objects expected", MAX_MOUNTS);
    const struct json_node *item = json_first(list);
    for (uint32_t i = 0; i < list->length; i++, item = json_next(json, item)) {
        struct mount_request *mount = &request->mounts[i];
        if (!parse_device(json, item, "mounts", &mount->device, &mount->type, fault) ||
            !want_text(json, item, "path", NULL, &mount->path, fault) ||
            !want_text(json, item, "options", "", &mount->options, fault) ||
            !want_text(json, item, "remount", "", &mount->remount, fault) ||
            !want_text(json, item, "directory", NULL, &mount->directory, fault) ||
            !want_bool(json, item, "read_only", &mount->read_only, fault) ||
            !want_bool(json, item, "device_read_only", &mount->device_read_only, fault) ||
            !want_bool(json, item, "copy", &mount->copy, fault) || !want_absolute("mounts.path", mount->path, fault))
            return false;
        if (!is_word(mount->directory) || strlen(mount->options) > MAX_OPTIONS || strlen(mount->remount) > MAX_OPTIONS)
            return refuse(fault, INVALID, "mounts: directory is a name, options at most %d bytes", MAX_OPTIONS);
    }
    request->mounts_count = (int)list->length;
    return true;
}

static bool parse_cgroup(const struct json *json, const struct json_node *cgroup, struct start_request *request,
                         struct fault *fault)
{
    int64_t unset = -1, period = 100000;
    return want_int(json, cgroup, "memory_max", 1, INT64_MAX, &unset, &request->memory_max, fault) &&
           want_int(json, cgroup, "memory_swap_max", 0, INT64_MAX, &unset, &request->memory_swap_max, fault) &&
           want_int(json, cgroup, "cpu_quota_us", 1000, INT32_MAX, &unset, &request->cpu_quota_us, fault) &&
           want_int(json, cgroup, "cpu_period_us", 1000, 1000000, &period, &request->cpu_period_us, fault) &&
           want_int(json, cgroup, "cpu_weight", 1, 10000, &unset, &request->cpu_weight, fault) &&
           want_int(json, cgroup, "pids_max", 1, 4194304, &unset, &request->pids_max, fault);
}

/* A container without a program: its files can be had while it does nothing. */
static bool parse_idle(const struct json *json, const struct json_node *arguments, struct process_request *process,
                       struct fault *fault)
{
    bool idle;
    if (!want_bool(json, arguments, "idle", &idle, fault))
        return false;
    process->builtin = idle ? BUILTIN_IDLE : BUILTIN_NONE;
    return true;
}

bool parse_start(const struct json *json, const struct json_node *arguments, struct start_request *request,
                 struct fault *fault)
{
    const struct json_node *root = json_get(json, arguments, "root"), *cgroup = json_get(json, arguments, "cgroup");
    if (!root || root->type != JSON_OBJECT)
        return refuse(fault, INVALID, "root: an object expected");
    if (cgroup && cgroup->type != JSON_OBJECT && cgroup->type != JSON_NULL)
        return refuse(fault, INVALID, "cgroup: an object expected");
    return parse_process(json, arguments, &request->process, fault) && parse_root(json, root, request, fault) &&
           parse_tmpfs(json, json_get(json, arguments, "tmpfs"), request, fault) &&
           parse_mounts(json, json_get(json, arguments, "mounts"), request, fault) &&
           parse_idle(json, arguments, &request->process, fault) &&
           want_bool(json, arguments, "init", &request->process.init, fault) &&
           parse_cgroup(json, cgroup, request, fault) &&
           want_bool(json, arguments, "rehearse", &request->rehearse, fault);
}

bool parse_exec(const struct json *json, const struct json_node *arguments, struct exec_request *request,
                struct fault *fault)
{
    int64_t session;
    if (!want_int(json, arguments, "session", 1, INT32_MAX, NULL, &session, fault))
        return false;
    request->session = (uint32_t)session;
    return parse_process(json, arguments, &request->process, fault);
}

/* A path that a prefix says something about: no `..`, and a real prefix. */
static bool below_kernel(const char *path)
{
    size_t length = strlen(path);
    if (strncmp(path, "/proc/", 6) != 0 && strncmp(path, "/sys/", 5) != 0)
        return false;
    return !strstr(path, "/../") && !(length >= 3 && strcmp(path + length - 3, "/..") == 0);
}

bool parse_read(const struct json *json, const struct json_node *arguments, struct read_request *request,
                struct fault *fault)
{
    int64_t usual = 65536;
    if (!want_texts(json, arguments, "files", request->files, MAX_READ_FILES, &request->files_count, fault) ||
        !want_texts(json, arguments, "statvfs", request->statvfs, MAX_STATVFS, &request->statvfs_count, fault) ||
        !want_int(json, arguments, "max_bytes", 1, 262144, &usual, &request->max_bytes, fault))
        return false;
    for (int i = 0; i < request->files_count; i++) {
        if (!want_absolute("files", request->files[i], fault))
            return false;
        if (request->stats && !below_kernel(request->files[i]))
            return refuse(fault, INVALID, "files: only what is below /proc and /sys, not %.100s", request->files[i]);
    }
    for (int i = 0; i < request->statvfs_count; i++)
        if (strlen(request->statvfs[i]) >= MAX_PATH)
            return refuse(fault, INVALID, "statvfs: paths of less than %d bytes expected", MAX_PATH);
    return true;
}

bool parse_fetch(const struct json *json, const struct json_node *arguments, struct fetch_request *request,
                 struct fault *fault)
{
    int64_t usual_ms = 5000, usual_bytes = 65536;
    if (!want_int(json, arguments, "fetch", 1, INT32_MAX, NULL, &request->number, fault) ||
        !want_int(json, arguments, "port", 1, 65535, NULL, &request->port, fault) ||
        !want_text(json, arguments, "send", "", &request->send, fault) ||
        !want_int(json, arguments, "deadline_ms", 1, 30000, &usual_ms, &request->deadline_ms, fault) ||
        !want_int(json, arguments, "max_bytes", 1, FETCH_MAX_BYTES, &usual_bytes, &request->max_bytes, fault))
        return false;
    return strlen(request->send) <= FETCH_SEND_BYTES ||
           refuse(fault, INVALID, "send: at most %d bytes", FETCH_SEND_BYTES);
}
