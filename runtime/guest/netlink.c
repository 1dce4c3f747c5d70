/* The guest's one interface, set through rtnetlink: MAC, MTU, address, default route. */
#include "hyper.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <string.h>
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

static bool set_link(int fd, int index, bool up, const struct identity_request *request)
{
    struct message message;
    struct ifinfomsg *link = begin(&message, RTM_NEWLINK, 0, sizeof *link);
    link->ifi_index = index;
    link->ifi_change = IFF_UP;
    link->ifi_flags = up ? IFF_UP : 0;
    if (!up) {
        add(&message, IFLA_ADDRESS, request->mac, sizeof request->mac);
        uint32_t mtu = (uint32_t)request->mtu;
        if (mtu)
            add(&message, IFLA_MTU, &mtu, sizeof mtu);
    }
    return ask(fd, &message);
}

/* Addresses of an earlier identity: the template's, or this guest's own. */
static bool drop_addresses(int fd, int index)
{
    struct message message;
    for (int left = 16; left > 0; left--) {
        char answer[8192];
        struct ifaddrmsg *body = begin(&message, RTM_GETADDR, NLM_F_DUMP, sizeof *body);
        body->ifa_family = AF_INET;
        if (send(fd, &message, message.head.nlmsg_len, 0) < 0)
            return false;
        uint32_t found = 0;
        uint8_t prefix = 0;
        for (bool done = false; !done;) {
            ssize_t got = recv(fd, answer, sizeof answer, 0);
            if (got <= 0)
                return false;
            int rest = (int)got;
            for (struct nlmsghdr *head = (struct nlmsghdr *)answer; NLMSG_OK(head, (unsigned)rest);
                 head = NLMSG_NEXT(head, rest)) {
                if (head->nlmsg_type == NLMSG_DONE || head->nlmsg_type == NLMSG_ERROR) {
                    done = true;
                    break;
                }
                const struct ifaddrmsg *address = NLMSG_DATA(head);
                if (head->nlmsg_type != RTM_NEWADDR || (int)address->ifa_index != index || found)
                    continue;
                int bytes = (int)IFA_PAYLOAD(head);
                for (const struct rtattr *at = IFA_RTA(address); RTA_OK(at, bytes); at = RTA_NEXT(at, bytes))
                    if (at->rta_type == IFA_LOCAL && RTA_PAYLOAD(at) == 4)
                        memcpy(&found, RTA_DATA(at), 4);
                prefix = address->ifa_prefixlen;
            }
        }
        if (!found)
            return true;
        body = begin(&message, RTM_DELADDR, 0, sizeof *body);
        *body = (struct ifaddrmsg){.ifa_family = AF_INET, .ifa_prefixlen = prefix, .ifa_index = (unsigned)index};
        add(&message, IFA_LOCAL, &found, sizeof found);
        if (!ask(fd, &message))
            return false;
    }
    return true;
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
    int index = (int)if_nametoindex(request->interface);
    if (!index)
        return refuse(fault, GENERIC, "network.interface: there is no %s", request->interface);
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    const char *step = fd < 0                                         ? "open netlink"
                       : !drop_addresses(fd, index)                   ? "remove the old address"
                       : !set_link(fd, index, false, request)         ? "set MAC and MTU"
                       : !add_address(fd, index, request)             ? "add the address"
                       : !set_link(fd, index, true, request)          ? "bring the interface up"
                       : request->gateway && !add_route(fd, index, request) ? "add the default route"
                                                                      : NULL;
    int error = errno;
    if (fd >= 0)
        close(fd);
    return !step || refuse(fault, GENERIC, "%s: cannot %s: %s", request->interface, step, strerror(error));
}
