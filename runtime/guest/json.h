/* A bounded JSON reader that decodes in place, and a bounded JSON writer. */
#ifndef HYPER_JSON_H
#define HYPER_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JSON_MAX_DEPTH 32
#define JSON_MAX_NODES 16384

enum json_type { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_INT, JSON_REAL, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

/* Nodes lie in document order: the children of a node follow it, and `end` is the index after the last of them.
 * An object's children are key, value, key, value. */
struct json_node {
    uint8_t type;
    uint32_t end;
    uint32_t length;  /* strings: bytes; numbers: bytes of their text; arrays and objects: members */
    const char *text; /* strings: decoded, NUL-terminated; numbers: as written */
    int64_t integer;
};

struct json {
    uint32_t count;
    struct json_node nodes[JSON_MAX_NODES];
};

/* Parse `text` (`length` bytes and a NUL after them, overwritten while strings are decoded); node 0 is the value.
 * Returns NULL, or what is wrong with it. */
const char *json_parse(struct json *json, char *text, size_t length);

/* The value of a member; NULL if there is none or `object` is no object. */
const struct json_node *json_get(const struct json *json, const struct json_node *object, const char *key);

/* The first child and the one after `node`; how many there are is `length`. */
const struct json_node *json_first(const struct json_node *parent);
const struct json_node *json_next(const struct json *json, const struct json_node *node);

/* A text that grows up to `limit` bytes; what comes after that, or when memory is short, sets `failed`. */
struct buffer {
    char *data;
    size_t length, capacity, limit;
    bool failed;
};

void buffer_prepare(void); /* the first small ones need no memory mapped */
void buffer_free(struct buffer *buffer);
void buffer_bytes(struct buffer *buffer, const void *bytes, size_t length);
void buffer_text(struct buffer *buffer, const char *text);
void buffer_int(struct buffer *buffer, int64_t value);
/* A quoted string; every byte that is not printable ASCII becomes an escape of that one byte. */
void buffer_quoted(struct buffer *buffer, const char *bytes, size_t length);
/* A parsed value written back. */
void buffer_node(struct buffer *buffer, const struct json *json, const struct json_node *node);

#endif
