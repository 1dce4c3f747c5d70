/* Writing JSON into a buffer that has a limit. */
#include "json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_BYTES 4096

/* Small buffers come and go with every answer, and each would be mapped and unmapped. */
static char *spare[2];

static char *take(void)
{
    for (size_t i = 0; i < sizeof spare / sizeof *spare; i++)
        if (spare[i]) {
            char *data = spare[i];
            spare[i] = NULL;
            return data;
        }
    return malloc(FIRST_BYTES);
}

static bool kept(char *data)
{
    for (size_t i = 0; i < sizeof spare / sizeof *spare; i++)
        if (!spare[i]) {
            spare[i] = data;
            return true;
        }
    return false;
}

void buffer_prepare(void)
{
    for (size_t i = 0; i < sizeof spare / sizeof *spare; i++)
        if (!spare[i] && (spare[i] = malloc(FIRST_BYTES)))
            memset(spare[i], 0, FIRST_BYTES);
}

void buffer_free(struct buffer *buffer)
{
    if (buffer->capacity != FIRST_BYTES || !kept(buffer->data))
        free(buffer->data);
    *buffer = (struct buffer){.limit = buffer->limit};
}

void buffer_bytes(struct buffer *buffer, const void *bytes, size_t length)
{
    if (buffer->failed || length > buffer->limit - buffer->length) {
        buffer->failed = true;
        return;
    }
    if (buffer->length + length > buffer->capacity) {
        size_t capacity = buffer->capacity ? buffer->capacity : FIRST_BYTES;
        while (capacity < buffer->length + length)
            capacity *= 2;
        char *data = capacity == FIRST_BYTES ? take() : realloc(buffer->data, capacity);
        if (!data) {
            buffer->failed = true;
            return;
        }
        buffer->data = data;
        buffer->capacity = capacity;
    }
    memcpy(buffer->data + buffer->length, bytes, length);
    buffer->length += length;
}

void buffer_text(struct buffer *buffer, const char *text)
{
    buffer_bytes(buffer, text, strlen(text));
}

void buffer_int(struct buffer *buffer, int64_t value)
{
    char text[24];
    int length = snprintf(text, sizeof text, "%lld", (long long)value);
    buffer_bytes(buffer, text, (size_t)length);
}

void buffer_quoted(struct buffer *buffer, const char *bytes, size_t length)
{
    static const char hex[] = "0123456789abcdef";
    size_t plain = 0;
    buffer_bytes(buffer, "\"", 1);
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c >= 0x20 && c < 0x7F && c != '"' && c != '\\')
            continue;
        buffer_bytes(buffer, bytes + plain, i - plain);
        plain = i + 1;
        if (c == '\n')
            buffer_bytes(buffer, "\\n", 2);
        else if (c == '\t')
            buffer_bytes(buffer, "\\t", 2);
        else if (c == '"' || c == '\\')
            buffer_bytes(buffer, (char[]){'\\', (char)c}, 2);
        else
            buffer_bytes(buffer, (char[]){'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]}, 6);
    }
    buffer_bytes(buffer, bytes + plain, length - plain);
    buffer_bytes(buffer, "\"", 1);
}

/* The reader's depth limit bounds this recursion. */
void buffer_node(struct buffer *buffer, const struct json *json, const struct json_node *node)
{
    const struct json_node *child = json_first(node);
    switch (node->type) {
    case JSON_NULL: buffer_text(buffer, "null"); break;
    case JSON_FALSE: buffer_text(buffer, "false"); break;
    case JSON_TRUE: buffer_text(buffer, "true"); break;
    case JSON_STRING: buffer_quoted(buffer, node->text, node->length); break;
    case JSON_ARRAY:
    case JSON_OBJECT:
        buffer_text(buffer, node->type == JSON_ARRAY ? "[" : "{");
        for (uint32_t i = 0; i < node->length; i++) {
            if (i)
                buffer_text(buffer, ",");
            if (node->type == JSON_OBJECT) {
                buffer_node(buffer, json, child);
                buffer_text(buffer, ":");
                child = json_next(json, child);
            }
            buffer_node(buffer, json, child);
            child = json_next(json, child);
        }
        buffer_text(buffer, node->type == JSON_ARRAY ? "]" : "}");
        break;
    default: buffer_bytes(buffer, node->text, node->length);
    }
}
