/* Sends frames, each an argument in hexadecimal, from an interface as they are: frames INTERFACE HEX… */
#include <arpa/inet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/* linux/if_packet.h, linux/if_ether.h: musl has them under other names */
#include <netpacket/packet.h>
#define EVERY_PROTOCOL 0x0003

int main(int count, char **arguments)
{
    int fd = socket(AF_PACKET, SOCK_RAW, htons(EVERY_PROTOCOL));
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(arguments[1])};
    for (int i = 2; i < count; i++) {
        unsigned char frame[2048];
        size_t length = strlen(arguments[i]) / 2;
        unsigned value;
        for (size_t at = 0; at < length && sscanf(arguments[i] + 2 * at, "%2x", &value) == 1; at++)
            frame[at] = (unsigned char)value;
        if (sendto(fd, frame, length, 0, (struct sockaddr *)&to, sizeof to) < 0) {
            perror("frames");
            return 1;
        }
    }
    return 0;
}
