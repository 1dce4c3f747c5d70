/* Lines out of a byte stream: at most 1 MiB each; 0xFF throws away what stood before it. */
#include "hyper.h"

#include <string.h>

char *line_space(struct line_buffer *lines, size_t *room)
{
    if (lines->start > 0) {
        memmove(lines->data, lines->data + lines->start, lines->end - lines->start);
        lines->end -= lines->start;
        lines->scan -= lines->start;
        lines->start = 0;
    }
    *room = LINE_MAX_BYTES - lines->end;
    return lines->data + lines->end;
}

void line_added(struct line_buffer *lines, size_t length)
{
    lines->end += length;
}

enum line_event line_next(struct line_buffer *lines, char **line, size_t *length)
{
    while (lines->scan < lines->end) {
        unsigned char c = (unsigned char)lines->data[lines->scan++];
        if (c == 0xFF) {
            lines->start = lines->scan;
            lines->skipping = false;
        } else if (c == '\n') {
            *line = lines->data + lines->start;
            *length = lines->scan - 1 - lines->start;
            lines->data[lines->scan - 1] = '\0';
            lines->start = lines->scan;
            if (!lines->skipping)
                return LINE_READY;
            lines->skipping = false;
        }
    }
    if (lines->skipping) {
        lines->start = lines->scan = lines->end = 0;
    } else if (lines->end - lines->start == LINE_MAX_BYTES) {
        lines->start = lines->scan = lines->end = 0;
        lines->skipping = true;
        return LINE_TOO_LONG;
    }
    return LINE_NONE;
}
