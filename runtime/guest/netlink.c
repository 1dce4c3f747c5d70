/* The guest's one interface: MAC and MTU by ioctl, address and default route through rtnetlink. What every guest has
 * alike is done before it is known who it is, so that a clone finds it done: the interface is up, without an address. */
#include "hyper.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

struct message {
    struct nlmsghdr head;
    char rest[256];
};

static void *begin(struct message *message, int type, int flags, size_t body)
{
    memset(message, 0, sizeof *message);
    message->head.nlmsg_len = NLMSG_LENGTH(body);
    message->head.nlmsg_type = (uint16_t)type;
    message->head.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    return NLMSG_DATA(&message->head);
}

static void add(struct message *message, int type, const void *data, size_t length)
{
    struct rtattr *attribute = (struct rtattr *)((char *)message + NLMSG_ALIGN(message->head.nlmsg_len));
    attribute->rta_type = (uint16_t)type;
    attribute->rta_len = (uint16_t)RTA_LENGTH(length);
    memcpy(RTA_DATA(attribute), data, length);
    message->head.nlmsg_len = NLMSG_ALIGN(message->head.nlmsg_len) + RTA_ALIGN(attribute->rta_len);
}

/* Send a request and wait for the kernel's acknowledgement, which comes at once. */
static bool ask(int fd, struct message *message)
{
    char answer[1024];
    message->head.nlmsg_flags |= NLM_F_ACK;
    if (send(fd, message, message->head.nlmsg_len, 0) < 0)
        return false;
    ssize_t got = recv(fd, answer, sizeof answer, 0);
    const struct nlmsghdr *head = (const struct nlmsghdr *)answer;
    if (got < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)) || head->nlmsg_type != NLMSG_ERROR) {
        errno = got < 0 ? errno : EPROTO;
        return false;
    }
    errno = -((const struct nlmsgerr *)NLMSG_DATA(head))->error;
    return errno == 0;
}

static struct {
    char name[IFNAMSIZ]; /* "": none yet */
    int index, mtu;
    int control, netlink; /* sockets */
} nic = {.control = -1, .netlink = -1};

static struct ifreq named(const char *interface)
{
    struct ifreq request = {0};
    strncpy(request.ifr_name, interface, sizeof request.ifr_name - 1);
    return request;
}

static bool open_sockets(void)
{
    const struct sockaddr_nl any = {.nl_family = AF_NETLINK};
    if (nic.netlink >= 0)
        return true;
    if (nic.control < 0)
        nic.control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int fd = nic.control < 0 ? -1 : socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd >= 0 && bind(fd, (const struct sockaddr *)&any, sizeof any) == 0) {
        nic.netlink = fd;
        return true;
    }
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return false;
}

/* Returns what could not be done, and errno; NULL: the interface is up, and known as `nic`. */
static const char *find_link(const char *interface)
{
    struct ifreq index = named(interface), mtu = index, flags = index;
    if (strcmp(nic.name, interface) == 0)
        return NULL;
    if (!open_sockets())
        return "open a socket";
    if (ioctl(nic.control, SIOCGIFINDEX, &index) != 0)
        return "find it";
    if (ioctl(nic.control, SIOCGIFMTU, &mtu) != 0)
        return "read its MTU";
    if (ioctl(nic.control, SIOCGIFFLAGS, &flags) != 0)
        return "read its flags";
    flags.ifr_flags |= IFF_UP;
    if (ioctl(nic.control, SIOCSIFFLAGS, &flags) != 0)
        return "bring it up";
    strcpy(nic.name, index.ifr_name);
    nic.index = index.ifr_ifindex;
    nic.mtu = mtu.ifr_mtu;
    return NULL;
}

void network_prepare(const char *interface)
{
    const char *step = find_link(interface);
    if (step && errno != ENODEV)
        say("%s: cannot %s: %s", interface, step, strerror(errno));
}

static bool set_mac(const unsigned char *mac)
{
    struct ifreq request = named(nic.name);
    request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(request.ifr_hwaddr.sa_data, mac, 6);
    return ioctl(nic.control, SIOCSIFHWADDR, &request) == 0;
}

static bool set_mtu(int mtu)
{
    struct ifreq request = named(nic.name);
    if (!mtu || mtu == nic.mtu)
        return true;
    request.ifr_mtu = mtu;
    if (ioctl(nic.control, SIOCSIFMTU, &request) != 0)
        return false;
    nic.mtu = mtu;
    return true;
}

static struct ifaddrmsg former; /* the address of an earlier identity; index 0: there was none */
static uint32_t former_address;

static bool drop_address(int fd)
{
    struct message message;
    if (!former.ifa_index)
        return true;
    struct ifaddrmsg *body = begin(&message, RTM_DELADDR, 0, sizeof *body);
    *body = former;
    add(&message, IFA_LOCAL, &former_address, sizeof former_address);
    former.ifa_index = 0;
    return ask(fd, &message) || errno == EADDRNOTAVAIL;
}

static bool add_address(int fd, int index, const struct identity_request *request)
{
    struct message message;
    struct ifaddrmsg *body = begin(&message, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sizeof *body);
    body->ifa_family = AF_INET;
    body->ifa_prefixlen = (uint8_t)request->prefix;
    body->ifa_index = (unsigned)index;
    add(&message, IFA_LOCAL, &request->address, sizeof request->address);
    add(&message, IFA_ADDRESS, &request->address, sizeof request->address);
    uint32_t mask = htonl(request->prefix == 32 ? 0xFFFFFFFF : ~(0xFFFFFFFFU >> request->prefix));
    uint32_t broadcast = request->address | ~mask;
    if (request->prefix < 31)
        add(&message, IFA_BROADCAST, &broadcast, sizeof broadcast);
    former = *body;
    former_address = request->address;
    return ask(fd, &message);
}

static bool add_route(int fd, int index, const struct identity_request *request)
{
    struct message message;
    struct rtmsg *route = begin(&message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sizeof *route);
    *route = (struct rtmsg){.rtm_family = AF_INET,
                            .rtm_table = RT_TABLE_MAIN,
                            .rtm_protocol = RTPROT_STATIC,
                            .rtm_scope = RT_SCOPE_UNIVERSE,
                            .rtm_type = RTN_UNICAST};
    add(&message, RTA_GATEWAY, &request->gateway, sizeof request->gateway);
    add(&message, RTA_OIF, &index, sizeof index);
    return ask(fd, &message);
}

bool network_set(const struct identity_request *request, struct fault *fault)
{
    const char *step = find_link(request->interface);
    if (step && errno == ENODEV)
        return refuse(fault, GENERIC, "network.interface: there is no %s", request->interface);
    if (!step)
        step = !drop_address(nic.netlink)                                        ? "remove the old address"
               : !set_mac(request->mac)                                          ? "set the MAC"
               : !set_mtu(request->mtu)                                          ? "set the MTU"
               : !add_address(nic.netlink, nic.index, request)                   ? "add the address"
               : request->gateway && !add_route(nic.netlink, nic.index, request) ? "add the default route"
                                                                                 : NULL;
    return !step || refuse(fault, GENERIC, "%s: cannot %s: %s", request->interface, step, strerror(errno));
}
