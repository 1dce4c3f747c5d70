/* The user of a process, looked up in the image's own /etc/passwd and /etc/group. Runs in the child, inside the root. */
#include "hyper.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_LIMIT (1 << 20)
#define FIELDS 7

/* A file of the image: hostile in size and kind. Absent or odd is the same as empty. */
static char *load(const char *path)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    char *text = NULL;
    if (fd >= 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode)) {
        size_t length = 0, size = status.st_size < FILE_LIMIT ? (size_t)status.st_size : FILE_LIMIT;
        ssize_t got;
        if (!(text = malloc(size + 1))) {
            close(fd);
            return NULL;
        }
        while (length < size && (got = read(fd, text + length, size - length)) > 0)
            length += (size_t)got;
        text[length] = '\0';
    }
    if (fd >= 0)
        close(fd);
    return text;
}

/* The next line as fields; missing ones are empty. */
static bool next_line(char **rest, char *fields[FIELDS])
{
    static char empty[1];
    char *line = strsep(rest, "\n");
    if (!line)
        return false;
    for (int i = 0; i < FIELDS; i++) {
        char *field = line ? strsep(&line, ":") : NULL;
        fields[i] = field ? field : empty;
    }
    return true;
}

static bool to_id(const char *text, unsigned *id)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value > 0x7FFFFFFF)
        return false;
    *id = (unsigned)value;
    return true;
}

static bool lists(const char *members, const char *name)
{
    size_t length = strlen(name);
    while (*members) {
        size_t span = strcspn(members, ",");
        if (span == length && memcmp(members, name, length) == 0)
            return true;
        members += span + (members[span] == ',');
    }
    return false;
}

static void find_group(const char *wanted, const char *member, struct user *user, int report)
{
    char *text = load("/etc/group"), *rest = text, *fields[FIELDS];
    unsigned id, number;
    bool numeric = wanted[0] && to_id(wanted, &number), found = false;
    while (text && next_line(&rest, fields)) {
        if (!to_id(fields[2], &id))
            continue;
        if (!wanted[0]) {
            if (member[0] && id != user->gid && lists(fields[3], member) && user->groups_count < MAX_GROUPS)
                user->groups[user->groups_count++] = id;
        } else if (!found && (strcmp(fields[0], wanted) == 0 || (numeric && id == number))) {
            user->gid = id;
            found = true;
        }
    }
    free(text);
    if (wanted[0] && !found) {
        if (!numeric)
            child_fail(report, NOT_FOUND, "unable to find group %s: no matching entries in group file", wanted);
        user->gid = number;
    }
}

void user_find(const char *text, struct user *user, int report)
{
    char name[257], member[257] = "";
    snprintf(name, sizeof name, "%s", text);
    char *group = strchr(name, ':');
    if (group)
        *group++ = '\0';
    const char *wanted = name[0] ? name : "0";
    *user = (struct user){.home = "/", .groups_count = 1}; /* the first is the primary one, as Docker has it */
    unsigned id, number, group_id;
    bool numeric = to_id(wanted, &number), found = false;
    char *passwd = load("/etc/passwd"), *rest = passwd, *fields[FIELDS];
    while (passwd && !found && next_line(&rest, fields)) {
        if (!to_id(fields[2], &id) || !to_id(fields[3], &group_id))
            continue;
        if (strcmp(fields[0], wanted) != 0 && !(numeric && id == number))
            continue;
        found = true;
        user->uid = id;
        user->gid = group_id;
        snprintf(member, sizeof member, "%s", fields[0]);
        if (fields[5][0] == '/')
            snprintf(user->home, sizeof user->home, "%s", fields[5]);
    }
    free(passwd);
    if (!found) {
        if (!numeric)
            child_fail(report, NOT_FOUND, "unable to find user %s: no matching entries in passwd file", wanted);
        user->uid = number;
    }
    find_group(group ? group : "", member, user, report);
    user->groups[0] = user->gid;
}
