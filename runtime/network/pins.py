"""The nftables table that pins each guest to its own MAC and IPv4 address.

A tap carries its guest's address as its interface group (`IFLA_GROUP`), set in the same netlink message that puts it on
the bridge. As the MAC follows from the address (`mac_of`), what a guest may send is a truth about its group that
never changes: the rules and their set are written once, nothing is done at a start, and nothing is left when a tap is
gone. `docs/adr/0014-a-tap-carries-its-address.md` has the reasons.

What a guest sends from another address, in another protocol (IPv6, VLAN tags) or to the group addresses of bridges
(01:80:c2:00:00:00 to 0f) is dropped. It is told to nobody.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from runtime.errors import HostUnable
from runtime.network import nft

# Addresses that the set has from the beginning; containers get the lowest that is free. More come when they are needed.
BLOCK = 1024
# A bridge learns from a frame to 01:80:c2:00:00:0e (LLDP) before any hook; unless it is to pass it on, then it asks the
# hook first, and our rules drop it. The bits of the first three addresses cannot be set: those go another way.
FORWARDED_GROUPS = 0xFFF8


@dataclass(slots=True)
class _Table:
    """What this process has written for a bridge: which blocks of the subnet's addresses."""

    subnet: str
    blocks: set[int]


_tables: dict[str, _Table] = {}


def group_of(address: str) -> int:
    """The interface group of the tap whose guest has this address."""
    return int(ipaddress.IPv4Address(address))


def mac_of(address: str) -> str:
    """A MAC derived from the IPv4 address, so that a reused address never meets a stale ARP entry."""
    packed = ipaddress.IPv4Address(address).packed
    return "52:54:" + ":".join(f"{byte:02x}" for byte in packed)


def render(bridge: str, subnet: str, block: int = 0) -> str:
    """The table as nft text, with the addresses of one block of the subnet; those that it had before stay in it."""
    network = ipaddress.IPv4Network(subnet)
    first, last = int(network[0]), int(network[-1])
    begin = first + block * BLOCK
    addresses = [str(ipaddress.IPv4Address(number)) for number in range(begin, min(begin + BLOCK, last + 1))]
    elements = ", ".join(f"{group_of(one)} . {mac_of(one)} . {one}" for one in addresses)
    arp = "arp htype 1 arp ptype ip arp hlen 6 arp plen 4 meta iifgroup . arp saddr ether . arp saddr ip @pins"
    name = nft.table_name(bridge)
    groups = "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00"
    lines = [
        f"table bridge {name} {{}}",
        f"flush table bridge {name}",  # its rules; what its set has stays
        f"table bridge {name} {{",
        f"  set pins {{ type devgroup . ether_addr . ipv4_addr; elements = {{ {elements} }}; }}",
        # Before the bridge learns where an address is.
        "  chain forwarded { type filter hook prerouting priority -300; policy accept;",
        f"    meta iifgroup != {first}-{last} accept",
        f"    {groups} drop",
        f"    ether type arp {arp} meta iifgroup . ether saddr . arp saddr ip @pins accept",
        "    ether type ip meta iifgroup . ether saddr . ip saddr @pins accept",
        "    drop",
        "  }",
        # LACP frames, which do not pass the hook above, and from which a bridge learns as well.
        "  chain received { type filter hook input priority -300; policy accept;",
        f"    meta iifgroup {first}-{last} {groups} drop",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


async def write(bridge: str, subnet: str) -> None:
    """Give the kernel the table of a bridge.

    Raises:
        HostUnable: nft is missing, or refused it.
    """
    await nft.apply(render(bridge, subnet))
    _tables[bridge] = _Table(subnet, {0})


async def cover(bridge: str, address: str) -> None:
    """See to it that the table knows the address.

    Raises:
        HostUnable: as `write`; or the bridge has no table.
    """
    table = _tables.get(bridge)
    if table is None:
        raise HostUnable(f"the bridge {bridge} has no rules yet: a guest on it could pass for another")
    block = (group_of(address) - int(ipaddress.IPv4Network(table.subnet)[0])) // BLOCK
    if block not in table.blocks:
        await nft.apply(render(bridge, table.subnet, block))
        table.blocks.add(block)
