"""The nftables table of outgoing NAT and published ports (that of the bridge itself is in `pins`).

The table is always written whole, in one transaction: what the kernel has is what was asked for last, and a leftover
of a crash cannot stay. Connections that are open go on, because their translation is kept by the connection tracker.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from runtime.errors import HostUnable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.record import Port


def table_name(bridge: str) -> str:
    """The table belongs to one bridge, so that two daemons with two bridges live side by side."""
    return f"hyper_{bridge}"


def render(bridge: str, subnet: str, published: Iterable[tuple[str, Port]]) -> str:
    """The whole table as nft text; `published` are pairs of guest address and port."""
    anywhere: dict[str, list[str]] = {"tcp": [], "udp": []}
    at_address: dict[str, list[str]] = {"tcp": [], "udp": []}
    for address, port in published:
        target = f"{address} . {port.container_port}"
        if port.host_ip == "0.0.0.0":  # noqa: S104 -- compared, not bound
            anywhere[port.protocol].append(f"{port.host_port} : {target}")
        else:
            at_address[port.protocol].append(f"{port.host_ip} . {port.host_port} : {target}")
    name = table_name(bridge)
    lines = [f"table ip {name} {{}}", f"delete table ip {name}", f"table ip {name} {{"]
    rules = []
    for protocol in ("tcp", "udp"):
        for map_name, key, match, elements in (
            (f"{protocol}_at", "ipv4_addr . inet_service", f"ip daddr . {protocol} dport", at_address[protocol]),
            (f"{protocol}_any", "inet_service", f"{protocol} dport", anywhere[protocol]),
        ):
            content = f"elements = {{ {', '.join(elements)} }};" if elements else ""
            lines.append(f"  map {map_name} {{ type {key} : ipv4_addr . inet_service; {content} }}")
            rules.append(f"    fib daddr type local dnat ip to {match} map @{map_name}")
    lines += [
        # Only what the host itself sends may reach 127.0.0.0/8 through the bridge's route_localnet.
        "  chain guard { type filter hook prerouting priority raw; policy accept;",
        f'    iifname "{bridge}" ip daddr 127.0.0.0/8 drop',
        "  }",
        "  chain incoming { type nat hook prerouting priority dstnat; policy accept;",
        *rules,
        "  }",
        "  chain local { type nat hook output priority -100; policy accept;",
        *rules,
        "  }",
        "  chain outgoing { type nat hook postrouting priority srcnat; policy accept;",
        f'    ip saddr {subnet} oifname != "{bridge}" masquerade',
        f'    ip saddr 127.0.0.0/8 oifname "{bridge}" masquerade',
        # A guest that calls a published port of its own host must see the answer come from there.
        f'    ip saddr {subnet} oifname "{bridge}" ct status dnat masquerade',
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


async def apply(text: str) -> None:
    """Give the text to nft, as one transaction.

    Raises:
        HostUnable: nft is missing, refused the text, or the kernel lacks what it needs.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "nft",
            "-f",
            "-",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as err:
        raise HostUnable("the program nft is missing: install the package nftables") from err
    _, stderr = await process.communicate(text.encode())
    if process.returncode != 0:
        first_line = stderr.decode(errors="replace").strip().splitlines()[:1]
        raise HostUnable(f"nft refused the rules: {''.join(first_line)}. hyperd needs root (CAP_NET_ADMIN)")


async def remove(bridge: str) -> None:
    """Remove both tables; none is no failure."""
    name = table_name(bridge)
    await apply("".join(f"table {family} {name} {{}}\ndelete table {family} {name}\n" for family in ("ip", "bridge")))
