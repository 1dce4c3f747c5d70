"""Flows that the connection tracker keeps at the address of a guest that has lost its published ports.

A TCP connection that is open stays where it is until it ends. UDP has no end: a client that keeps sending from one port
keeps its entry alive, and would be sent to a guest that is gone, for ever. So its entries are deleted, and its next
packet goes by the table of ports. Source: linux/netfilter/nfnetlink_conntrack.h; filters in dumps since Linux 5.8.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from runtime.network import netlink

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.record import Port

log = logging.getLogger(__name__)


async def forget_udp(address: str, ports: Iterable[Port]) -> int:
    """Delete the entries of published UDP ports that lead to this address; returns how many there were.

    A kernel that cannot be asked keeps them: it is logged.
    """
    wanted = {port.host_port for port in ports if port.protocol == "udp"}
    deleted = 0
    if not wanted:
        return deleted
    pyroute2 = await netlink.library()
    conntrack = await netlink.library("pyroute2.netlink.nfnetlink.nfctsocket")
    try:
        async with conntrack.AsyncNFCTSocket() as tracker:
            for port in wanted:
                of_port = conntrack.NFCTAttrTuple(proto=socket.IPPROTO_UDP, dport=port)
                entries = [entry async for entry in await tracker.dump(tuple_orig=of_port)]
                for entry in entries:
                    there = conntrack.NFCTAttrTuple.from_netlink(socket.AF_INET, entry.get_attr("CTA_TUPLE_ORIG"))
                    back = conntrack.NFCTAttrTuple.from_netlink(socket.AF_INET, entry.get_attr("CTA_TUPLE_REPLY"))
                    if (there.proto, there.dport, back.saddr) == (socket.IPPROTO_UDP, port, address):
                        await tracker.entry("del", tuple_orig=there)
                        deleted += 1
    except (pyroute2.NetlinkError, OSError) as err:
        log.warning("UDP flows to %s cannot be deleted, and may last as long as their clients send: %s", address, err)
    return deleted
