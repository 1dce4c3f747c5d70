/* Members of a request, one type each: what is wrong is said with the member's name. */
#include "hyper.h"

#include <stdio.h>

bool refuse(struct fault *fault, const char *class, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fault->class = class;
    vsnprintf(fault->text, sizeof fault->text, format, list);
    va_end(list);
    return false;
}

static const struct json_node *member(const struct json *json, const struct json_node *object, const char *key)
{
    const struct json_node *node = json_get(json, object, key);
    return node && node->type == JSON_NULL ? NULL : node;
}

bool want_int(const struct json *json, const struct json_node *object, const char *key, int64_t low, int64_t high,
              const int64_t *fallback, int64_t *value, struct fault *fault)
{
    const struct json_node *node = member(json, object, key);
    if (!node && fallback) {
        *value = *fallback;
        return true;
    }
    if (!node)
        return refuse(fault, INVALID, "%s: missing", key);
    if (node->type != JSON_INT || node->integer < low || node->integer > high)
        return refuse(fault, INVALID, "%s: an integer from %lld to %lld expected", key, (long long)low,
                      (long long)high);
    *value = node->integer;
    return true;
}

bool want_bool(const struct json *json, const struct json_node *object, const char *key, bool *value,
               struct fault *fault)
{
    const struct json_node *node = member(json, object, key);
    if (node && node->type != JSON_TRUE && node->type != JSON_FALSE)
        return refuse(fault, INVALID, "%s: true or false expected", key);
    *value = node && node->type == JSON_TRUE;
    return true;
}

bool want_text(const struct json *json, const struct json_node *object, const char *key, const char *fallback,
               const char **value, struct fault *fault)
{
    const struct json_node *node = member(json, object, key);
    if (!node && fallback) {
        *value = fallback;
        return true;
    }
    if (!node || node->type != JSON_STRING)
        return refuse(fault, INVALID, "%s: a string expected", key);
    *value = node->text;
    return true;
}

bool want_texts(const struct json *json, const struct json_node *object, const char *key, const char **values,
                int limit, int *count, struct fault *fault)
{
    const struct json_node *node = member(json, object, key);
    *count = 0;
    if (!node)
        return true;
    if (node->type != JSON_ARRAY)
        return refuse(fault, INVALID, "%s: a list of strings expected", key);
    if (node->length > (uint32_t)limit)
        return refuse(fault, INVALID, "%s: at most %d items", key, limit);
    const struct json_node *item = json_first(node);
    for (uint32_t i = 0; i < node->length; i++, item = json_next(json, item)) {
        if (item->type != JSON_STRING)
            return refuse(fault, INVALID, "%s: a list of strings expected", key);
        values[(*count)++] = item->text;
    }
    return true;
}
