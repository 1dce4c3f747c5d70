"""Flows that the connection tracker keeps where published ports no longer lead.

A TCP connection that is open stays where it is until it ends. UDP has no end: a client that keeps sending from one port
keeps its entry alive, and would be sent for ever to a guest that is gone, to the one that gets its address next, or to
the host, if it was sending before the port was published. So its entries are deleted, and its next packet goes by the
table of ports. Source: linux/netfilter/nfnetlink_conntrack.h; filters in dumps since Linux 5.8.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from runtime.network import netlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runtime.record import Port

log = logging.getLogger(__name__)


async def forget_udp(address: str, ports: Iterable[Port]) -> int:
    """Delete the entries of published UDP ports that lead to this address; returns how many there were.

    A kernel that cannot be asked keeps them: it is logged.
    """
    return await _forget(ports, lambda _, __, back: back == address)


async def forget_udp_elsewhere(address: str, ports: Iterable[Port]) -> int:
    """Delete those that lead to any other address than this one, which the ports have now; as `forget_udp`."""

    def is_elsewhere(port: Port, there: str, back: str) -> bool:
        anywhere = port.host_ip == "0.0.0.0"  # noqa: S104 -- compared, not bound
        return back != address and (_is_ours(there) if anywhere else there == port.host_ip)

    return await _forget(ports, is_elsewhere)


def _is_ours(address: str) -> bool:
    """Whether an address is of this host: what goes through it to others may have the same port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


async def _forget(ports: Iterable[Port], is_stale: Callable[[Port, str, str], bool]) -> int:
    """Delete the entries of UDP ports of which this is true: port, address sent to, address that it comes to."""
    wanted = [port for port in ports if port.protocol == "udp"]
    deleted = 0
    if not wanted:
        return deleted
    pyroute2 = await netlink.library()
    conntrack = await netlink.library("pyroute2.netlink.nfnetlink.nfctsocket")
    try:
        async with conntrack.AsyncNFCTSocket() as tracker:
            for port in wanted:
                of_port = conntrack.NFCTAttrTuple(proto=socket.IPPROTO_UDP, dport=port.host_port)
                entries = [entry async for entry in await tracker.dump(tuple_orig=of_port)]
                for entry in entries:
                    there = conntrack.NFCTAttrTuple.from_netlink(socket.AF_INET, entry.get_attr("CTA_TUPLE_ORIG"))
                    back = conntrack.NFCTAttrTuple.from_netlink(socket.AF_INET, entry.get_attr("CTA_TUPLE_REPLY"))
                    is_of_port = (there.proto, there.dport) == (socket.IPPROTO_UDP, port.host_port)
                    if is_of_port and is_stale(port, there.daddr, back.saddr):
                        await tracker.entry("del", tuple_orig=there)
                        deleted += 1
    except (pyroute2.NetlinkError, OSError) as err:
        numbers = ", ".join(str(port.host_port) for port in wanted)
        log.warning("UDP flows of %s cannot be deleted, and may last as long as their clients send: %s", numbers, err)
    return deleted
