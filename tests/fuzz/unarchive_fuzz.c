/* Hostile archives for the guest's `put`, on the host, under the address and undefined-behaviour sanitizers.
 *
 *   unarchive_fuzz SEED SECONDS DIRECTORY
 *
 * Real code: unarchive.c, in a child for each archive, as it ends its process. Bodies of pax headers are the corpus' own
 * records, whole first, then put together and mutated; checksums fit, so that what is behind them is reached. Each child
 * must say "unpacked" (0) or "refused" (1). Equal seeds give equal input. */
#include "hyper.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 512
#define COUNT(list) (sizeof(list) / sizeof *(list))

static uint64_t state;

static uint32_t below(uint32_t limit)
{
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(state >> 33) % limit;
}

static const char *const records[] = {
    "\n\n\n\n\n5 SCHILY.xattr.user.x=v", /* its length is of the newlines alone: key and value lay behind the record */
    "    \n5 SCHILY.xattr.user.x=v\n",
    "+++++5 a=\n",
    "30 mtime=1700000000.123456789\n",
    "13 path=d/ab\n",
    "14 linkpath=a\n",
    "10 size=3\n",
    "12 uid=1000\n",
    "12 gid=1000\n",
    "28 size=9223372036854775807\n",
    "11 size=-1\n",
    "11 uid=+1\n",
    "12 mtime=-5\n",
    "27 SCHILY.xattr.user.x=abc\n",
    "5 a=\n",
    "18446744073709551615 a=b\n",
    "-5 a=\n",
};
/* Those that were an overrun, or a number that is none: an archive with only that must be refused. */
static const size_t refused_alone[] = {0, 1, 2, 9, 10, 11, 15, 16};

static const char *const names[] = {"a", "d", "d/a", "./d//b", "../out", "d/../../out", "/d/link/x", "d/link", ""};

static size_t put_header(char *to, const char *name, char type, size_t size, bool odd)
{
    unsigned sum = 0;
    memset(to, 0, BLOCK);
    snprintf(to, 100, "%s", name);
    snprintf(to + 100, 8, "%07o", 0644);
    snprintf(to + 108, 8, "%07o", 0);
    snprintf(to + 116, 8, "%07o", 0);
    snprintf(to + 124, 12, "%011zo", size);
    snprintf(to + 136, 12, "%011o", 1700000000);
    snprintf(to + 157, 100, "%s", below(2) ? "/etc" : names[below(COUNT(names))]);
    memcpy(to + 257, "ustar\00000", 8);
    if (odd)
        to[100 + below(156 - 100)] = (char)below(256);
    memset(to + 148, ' ', 8);
    to[156] = type;
    for (int i = 0; i < BLOCK; i++)
        sum += (unsigned char)to[i];
    snprintf(to + 148, 8, "%06o", sum);
    return BLOCK;
}

static size_t put_body(char *to, const char *body, size_t size)
{
    size_t padded = (size + BLOCK - 1) / BLOCK * BLOCK;
    memset(to, 0, padded);
    memcpy(to, body, size);
    return padded;
}

static size_t mutate(char *data, size_t room)
{
    size_t length = 0;
    for (uint32_t count = 1 + below(4); count > 0; count--) {
        const char *record = records[below(COUNT(records))];
        memcpy(data + length, record, strlen(record));
        length += strlen(record);
    }
    for (uint32_t steps = below(5); steps > 0 && length > 1 && length < room; steps--) {
        size_t at = below((uint32_t)length);
        switch (below(3)) {
        case 0: data[at] = "\n 0123456789+-=.a\0\xff"[below(19)]; break;
        case 1: memmove(data + at, data + at + 1, --length - at); break;
        default: memmove(data + at + 1, data + at, length++ - at); /* twice */
        }
    }
    return length;
}

static size_t make(char *data, const char *record)
{
    char body[BLOCK];
    size_t length = 0;
    for (uint32_t entries = record ? 1 : 1 + below(4); entries > 0; entries--) {
        if (record || below(4)) {
            size_t size = record ? strlen(record) : mutate(body, sizeof body);
            length += put_header(data + length, "pax", record ? 'x' : "xxxLKg"[below(6)], size, !record && !below(8));
            length += put_body(data + length, record ? record : body, size);
        }
        char type = record ? '0' : "000001256"[below(9)];
        size_t size = type == '0' ? 3 : 0;
        length += put_header(data + length, record ? "a" : names[below(COUNT(names))], type, size,
                             !record && !below(8));
        length += put_body(data + length, "abc", size);
    }
    memset(data + length, 0, 2 * BLOCK);
    return below(8) || record ? length + 2 * BLOCK : below((uint32_t)length); /* or cut */
}

/* Whether it was unpacked; ends the run if the child ends in any other way than by its own word. */
static bool unpacks(const char *data, size_t length, const char *directory)
{
    static int input = -1, errors = -1;
    if (input < 0)
        input = memfd_create("input", 0);
    if (errors < 0)
        errors = memfd_create("errors", 0);
    if (ftruncate(input, 0) != 0 || ftruncate(errors, 0) != 0 || pwrite(input, data, length, 0) != (ssize_t)length)
        abort();
    lseek(input, 0, SEEK_SET);
    lseek(errors, 0, SEEK_SET);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(20);
        dup2(input, 0);
        dup2(errors, 2);
        unarchive_run(open(directory, O_RDONLY | O_DIRECTORY));
    }
    int status;
    if (waitpid(pid, &status, 0) != pid)
        abort();
    if (!WIFEXITED(status) || WEXITSTATUS(status) > 1) {
        static char text[16384];
        ssize_t got = pread(errors, text, sizeof text, 0);
        fwrite(text, 1, got > 0 ? (size_t)got : 0, stderr);
        fprintf(stderr, "the status of the child is 0x%x\n", (unsigned)status);
        exit(1);
    }
    return WEXITSTATUS(status) == 0;
}

int main(int count, char **args)
{
    static char data[64 * BLOCK];
    long archives = 0, unpacked = 0;
    if (count != 4)
        return 2;
    state = strtoull(args[1], NULL, 10);
    time_t end = time(NULL) + atoi(args[2]);
    for (size_t i = 0; i < COUNT(records); i++) {
        bool expected = true;
        for (size_t k = 0; k < COUNT(refused_alone); k++)
            expected &= refused_alone[k] != i;
        if (unpacks(data, make(data, records[i]), args[3]) != expected) {
            fprintf(stderr, "record %zu: %s\n", i, expected ? "refused" : "unpacked");
            return 1;
        }
    }
    for (; time(NULL) < end; archives++)
        unpacked += unpacks(data, make(data, NULL), args[3]);
    printf("%ld archives, %ld unpacked\n", archives, unpacked);
    return 0;
}
