/* What hyper-identity asks for, checked: every text ends up in a file of lines, so none may hold a separator. */
#include "hyper.h"

#include <arpa/inet.h>
#include <string.h>

#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

static bool is_name(const char *text, size_t limit)
{
    size_t length = strspn(text, LETTERS ".-_");
    return length > 0 && length <= limit && text[length] == '\0';
}

static bool is_address(const char *text)
{
    unsigned char bytes[16];
    return inet_pton(AF_INET, text, bytes) == 1 || inet_pton(AF_INET6, text, bytes) == 1;
}

static bool want_entropy(const char *text, struct identity_request *request, struct fault *fault)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t length = strlen(text), limit = sizeof request->entropy;
    uint32_t bits = 0;
    int held = 0;
    while (length && text[length - 1] == '=')
        length--;
    for (size_t i = 0; i < length; i++) {
        const char *at = strchr(alphabet, text[i]);
        if (!at)
            return refuse(fault, INVALID, "entropy: base64 expected");
        bits = bits << 6 | (uint32_t)(at - alphabet);
        held += 6;
        if (held >= 8) {
            held -= 8;
            if ((size_t)request->entropy_bytes == limit)
                return refuse(fault, INVALID, "entropy: at most %zu bytes", limit);
            request->entropy[request->entropy_bytes++] = (unsigned char)(bits >> held);
        }
    }
    if (text[0] && request->entropy_bytes < 32)
        return refuse(fault, INVALID, "entropy: at least 32 bytes");
    return true;
}

static bool want_mac(const char *text, unsigned char *mac, struct fault *fault)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    bool good = strlen(text) == 17;
    for (int i = 0; good && i < 17; i++) {
        const char *at = i % 3 == 2 ? NULL : strchr(digits, text[i]);
        good = i % 3 == 2 ? text[i] == ':' : at != NULL;
        if (at) {
            int value = (int)(at - digits);
            mac[i / 3] = (unsigned char)(mac[i / 3] << 4 | (value < 16 ? value : value - 6));
        }
    }
    if (!good)
        return refuse(fault, INVALID, "network.mac: six bytes like 52:54:0a:61:00:02 expected");
    if (mac[0] & 1)
        return refuse(fault, INVALID, "network.mac: a multicast address is nobody's own");
    return true;
}

static bool want_network(const struct json *json, const struct json_node *network, struct identity_request *request,
                         struct fault *fault)
{
    const char *interface, *mac, *address, *gateway;
    int64_t prefix, mtu, zero = 0;
    if (!network || network->type == JSON_NULL)
        return true;
    if (network->type != JSON_OBJECT)
        return refuse(fault, INVALID, "network: an object or null expected");
    if (!want_text(json, network, "interface", "eth0", &interface, fault) ||
        !want_text(json, network, "mac", NULL, &mac, fault) ||
        !want_text(json, network, "address", NULL, &address, fault) ||
        !want_text(json, network, "gateway", "", &gateway, fault) ||
        !want_int(json, network, "prefix", 1, 32, NULL, &prefix, fault) ||
        !want_int(json, network, "mtu", 0, 65535, &zero, &mtu, fault) || !want_mac(mac, request->mac, fault))
        return false;
    if (!is_name(interface, sizeof request->interface - 1))
        return refuse(fault, INVALID, "network.interface: a name like eth0 expected");
    if (inet_pton(AF_INET, address, &request->address) != 1)
        return refuse(fault, INVALID, "network.address: an IPv4 address expected");
    if (gateway[0] && inet_pton(AF_INET, gateway, &request->gateway) != 1)
        return refuse(fault, INVALID, "network.gateway: an IPv4 address expected");
    strcpy(request->interface, interface);
    request->prefix = (int)prefix;
    request->mtu = (int)mtu;
    request->network = true;
    return true;
}

static bool want_hosts(const struct json *json, const struct json_node *list, struct identity_request *request,
                       struct fault *fault)
{
    if (!list || list->type == JSON_NULL)
        return true;
    if (list->type != JSON_ARRAY || list->length > MAX_HOSTS)
        return refuse(fault, INVALID, "hosts: a list of at most %d pairs expected", MAX_HOSTS);
    const struct json_node *pair = json_first(list);
    for (uint32_t i = 0; i < list->length; i++, pair = json_next(json, pair)) {
        const struct json_node *address = json_first(pair);
        if (pair->type != JSON_ARRAY || pair->length != 2 || address[0].type != JSON_STRING ||
            address[1].type != JSON_STRING || !is_address(address[0].text) || !is_name(address[1].text, 253))
            return refuse(fault, INVALID, "hosts: pairs of an address and a name expected");
        request->hosts[i].address = address[0].text;
        request->hosts[i].name = address[1].text;
    }
    request->hosts_count = (int)list->length;
    return true;
}

bool parse_identity(const struct json *json, const struct json_node *arguments, struct identity_request *request,
                    struct fault *fault)
{
    const char *entropy;
    int64_t unset = -1;
    if (!want_int(json, arguments, "time_ns", 0, INT64_MAX, &unset, &request->time_ns, fault) ||
        !want_text(json, arguments, "entropy", "", &entropy, fault) ||
        !want_text(json, arguments, "machine_id", "", &request->machine_id, fault) ||
        !want_text(json, arguments, "hostname", "", &request->hostname, fault) ||
        !want_texts(json, arguments, "dns", request->dns, 16, &request->dns_count, fault) ||
        !want_texts(json, arguments, "search", request->search, 16, &request->search_count, fault) ||
        !want_entropy(entropy, request, fault) ||
        !want_network(json, json_get(json, arguments, "network"), request, fault) ||
        !want_hosts(json, json_get(json, arguments, "hosts"), request, fault))
        return false;
    if (request->machine_id[0] &&
        (strlen(request->machine_id) != 32 || strspn(request->machine_id, "0123456789abcdef") != 32))
        return refuse(fault, INVALID, "machine_id: 32 hexadecimal digits expected");
    if (request->hostname[0] && !is_name(request->hostname, 64))
        return refuse(fault, INVALID, "hostname: at most 64 letters, digits, '.', '-' and '_' expected");
    for (int i = 0; i < request->dns_count; i++)
        if (!is_address(request->dns[i]))
            return refuse(fault, INVALID, "dns: addresses expected");
    for (int i = 0; i < request->search_count; i++)
        if (!is_name(request->search[i], 253))
            return refuse(fault, INVALID, "search: domain names expected");
    return true;
}
