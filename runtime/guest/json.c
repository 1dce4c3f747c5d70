/* Reading JSON in place. Depth, nodes and length are bounded, so that a request can cost no more than it weighs. */
#include "json.h"

#include <string.h>

struct reader {
    struct json *json;
    char *at, *end;
    int depth;
    const char *error;
};

static bool fail(struct reader *r, const char *error)
{
    if (!r->error)
        r->error = error;
    return false;
}

static void skip_space(struct reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\r' || *r->at == '\n'))
        r->at++;
}

static struct json_node *new_node(struct reader *r, enum json_type type)
{
    if (r->json->count == JSON_MAX_NODES) {
        fail(r, "too many values");
        return NULL;
    }
    struct json_node *node = &r->json->nodes[r->json->count++];
    *node = (struct json_node){.type = (uint8_t)type, .end = r->json->count};
    return node;
}

static bool read_hex4(struct reader *r, uint32_t *code)
{
    if (r->end - r->at < 4)
        return fail(r, "short \\u escape");
    *code = 0;
    for (int i = 0; i < 4; i++) {
        char c = *r->at++;
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            digit = (uint32_t)((c | 32) - 'a' + 10);
        else
            return fail(r, "bad \\u escape");
        *code = *code << 4 | digit;
    }
    return true;
}

static char *put_utf8(char *out, uint32_t code)
{
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xC0 | code >> 6);
        *out++ = (char)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        *out++ = (char)(0xE0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 0x3F));
        *out++ = (char)(0x80 | (code & 0x3F));
    } else {
        *out++ = (char)(0xF0 | code >> 18);
        *out++ = (char)(0x80 | (code >> 12 & 0x3F));
        *out++ = (char)(0x80 | (code >> 6 & 0x3F));
        *out++ = (char)(0x80 | (code & 0x3F));
    }
    return out;
}

/* An escape is never shorter than the UTF-8 it stands for, so `out` cannot overtake the reader. */
static bool read_escape(struct reader *r, char **out)
{
    if (r->at == r->end)
        return fail(r, "unterminated string");
    char c = *r->at++;
    switch (c) {
    case '"': case '\\': case '/': *(*out)++ = c; return true;
    case 'b': *(*out)++ = '\b'; return true;
    case 'f': *(*out)++ = '\f'; return true;
    case 'n': *(*out)++ = '\n'; return true;
    case 'r': *(*out)++ = '\r'; return true;
    case 't': *(*out)++ = '\t'; return true;
    case 'u': break;
    default: return fail(r, "unknown escape");
    }
    uint32_t code, low;
    if (!read_hex4(r, &code))
        return false;
    if (code == 0)
        return fail(r, "NUL in a string");
    if (code >= 0xDC00 && code <= 0xDFFF)
        return fail(r, "lone surrogate");
    if (code >= 0xD800 && code <= 0xDBFF) {
        if (r->end - r->at < 2 || r->at[0] != '\\' || r->at[1] != 'u')
            return fail(r, "lone surrogate");
        r->at += 2;
        if (!read_hex4(r, &low))
            return false;
        if (low < 0xDC00 || low > 0xDFFF)
            return fail(r, "lone surrogate");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    *out = put_utf8(*out, code);
    return true;
}

static bool copy_utf8(struct reader *r, unsigned char lead, char **out)
{
    int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    uint32_t code = lead & (0x3F >> more);
    static const uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
    if (lead < 0xC2 || lead > 0xF4 || r->end - r->at < more)
        return fail(r, "invalid UTF-8");
    *(*out)++ = (char)lead;
    for (int i = 0; i < more; i++) {
        unsigned char c = (unsigned char)*r->at++;
        if ((c & 0xC0) != 0x80)
            return fail(r, "invalid UTF-8");
        code = code << 6 | (c & 0x3F);
        *(*out)++ = (char)c;
    }
    if (code < smallest[more] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF))
        return fail(r, "invalid UTF-8");
    return true;
}

static bool read_string(struct reader *r)
{
    struct json_node *node = new_node(r, JSON_STRING);
    if (!node)
        return false;
    char *out = ++r->at;
    node->text = out;
    while (r->at < r->end) {
        unsigned char c = (unsigned char)*r->at++;
        if (c == '"') {
            node->length = (uint32_t)(out - node->text);
            *out = '\0';
            return true;
        }
        if (c < 0x20)
            return fail(r, "control character in a string");
        if (c == '\\') {
            if (!read_escape(r, &out))
                return false;
        } else if (c < 0x80) {
            *out++ = (char)c;
        } else if (!copy_utf8(r, c, &out)) {
            return false;
        }
    }
    return fail(r, "unterminated string");
}

static bool is_digit(const struct reader *r)
{
    return r->at < r->end && *r->at >= '0' && *r->at <= '9';
}

static bool read_number(struct reader *r)
{
    struct json_node *node = new_node(r, JSON_INT);
    if (!node)
        return false;
    char *start = r->at;
    bool negative = *r->at == '-', overflow = false;
    int64_t value = 0;
    if (negative)
        r->at++;
    if (!is_digit(r))
        return fail(r, "bad number");
    bool leading_zero = *r->at == '0';
    char *digits = r->at;
    while (is_digit(r)) {
        int64_t digit = *r->at++ - '0';
        overflow |= __builtin_mul_overflow(value, 10, &value) ||
                    __builtin_add_overflow(value, negative ? -digit : digit, &value);
    }
    if (leading_zero && r->at - digits > 1)
        return fail(r, "bad number");
    if (r->at < r->end && *r->at == '.') {
        node->type = JSON_REAL;
        r->at++;
        if (!is_digit(r))
            return fail(r, "bad number");
        while (is_digit(r))
            r->at++;
    }
    if (r->at < r->end && (*r->at | 32) == 'e') {
        node->type = JSON_REAL;
        r->at++;
        if (r->at < r->end && (*r->at == '+' || *r->at == '-'))
            r->at++;
        if (!is_digit(r))
            return fail(r, "bad number");
        while (is_digit(r))
            r->at++;
    }
    if (overflow)
        node->type = JSON_REAL; /* not an integer that anything here takes */
    node->integer = overflow ? 0 : value;
    node->text = start;
    node->length = (uint32_t)(r->at - start);
    return true;
}

static bool read_value(struct reader *r);

static bool read_members(struct reader *r, enum json_type type, char close)
{
    struct json_node *node = new_node(r, type);
    if (!node)
        return false;
    if (++r->depth > JSON_MAX_DEPTH)
        return fail(r, "nested too deeply");
    r->at++;
    skip_space(r);
    if (r->at < r->end && *r->at == close) {
        r->at++;
    } else {
        for (;;) {
            skip_space(r);
            if (type == JSON_OBJECT) {
                if (r->at == r->end || *r->at != '"')
                    return fail(r, "member name expected");
                if (!read_string(r))
                    return false;
                skip_space(r);
                if (r->at == r->end || *r->at != ':')
                    return fail(r, "':' expected");
                r->at++;
            }
            if (!read_value(r))
                return false;
            node->length++;
            skip_space(r);
            if (r->at == r->end)
                return fail(r, "unexpected end");
            char c = *r->at++;
            if (c == close)
                break;
            if (c != ',')
                return fail(r, "',' expected");
        }
    }
    r->depth--;
    node->end = r->json->count;
    return true;
}

static bool read_word(struct reader *r, const char *word, enum json_type type)
{
    size_t length = strlen(word);
    if ((size_t)(r->end - r->at) < length || memcmp(r->at, word, length) != 0)
        return fail(r, "value expected");
    r->at += length;
    return new_node(r, type) != NULL;
}

static bool read_value(struct reader *r)
{
    skip_space(r);
    if (r->at == r->end)
        return fail(r, "unexpected end");
    switch (*r->at) {
    case '{': return read_members(r, JSON_OBJECT, '}');
    case '[': return read_members(r, JSON_ARRAY, ']');
    case '"': return read_string(r);
    case 't': return read_word(r, "true", JSON_TRUE);
    case 'f': return read_word(r, "false", JSON_FALSE);
    case 'n': return read_word(r, "null", JSON_NULL);
    default: return read_number(r);
    }
}

const char *json_parse(struct json *json, char *text, size_t length)
{
    struct reader r = {.json = json, .at = text, .end = text + length};
    json->count = 0;
    if (read_value(&r)) {
        skip_space(&r);
        if (r.at != r.end)
            fail(&r, "text after the value");
    }
    return r.error;
}

const struct json_node *json_first(const struct json_node *parent)
{
    return parent + 1;
}

const struct json_node *json_next(const struct json *json, const struct json_node *node)
{
    return &json->nodes[node->end];
}

const struct json_node *json_get(const struct json *json, const struct json_node *object, const char *key)
{
    if (!object || object->type != JSON_OBJECT)
        return NULL;
    const struct json_node *name = json_first(object);
    for (uint32_t i = 0; i < object->length; i++) {
        const struct json_node *value = json_next(json, name);
        if (strcmp(name->text, key) == 0)
            return value;
        name = json_next(json, value);
    }
    return NULL;
}
