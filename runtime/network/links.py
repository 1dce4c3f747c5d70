"""Bridge and taps, over netlink.

A tap is not persistent: it lives as long as somebody (QEMU) holds its descriptor, so that a dead VM leaves none.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import HostUnable
from runtime.network import netlink, pins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyroute2 import AsyncIPRoute

TAP_PREFIX = "hyp"

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000  # lets offloads through: half the throughput is lost without it
# linux/sockios.h, linux/if.h
_SIOCGIFADDR = 0x8915
_SIOCGIFNETMASK = 0x891B
_IFF_UP = 0x1


def tap_name(container_id: str) -> str:
    """The tap of a container; an interface name has at most 15 characters."""
    return TAP_PREFIX + container_id[:12]


def open_tap(name: str) -> int:
    """Make a tap and return its descriptor (inheritable by nobody until it is passed on).

    Raises:
        HostUnable: no `/dev/net/tun`, or no right to use it.
    """
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        raise HostUnable(
            f"cannot open /dev/net/tun: {err.strerror}. Run hyperd as root and load the kernel's 'tun' module"
        ) from err
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(fd, _TUNSETIFF, request)
    except OSError as err:
        os.close(fd)
        remedy = "Another process holds it" if err.errno == errno.EBUSY else "hyperd needs CAP_NET_ADMIN"
        raise HostUnable(f"cannot make the tap {name}: {err.strerror}. {remedy}") from err
    return fd


async def attach_tap(name: str, bridge: str, address: str) -> None:
    """Put the tap on the bridge and set it up; its guest can send from this address alone, from the first packet on.

    Raises:
        HostUnable: the bridge is gone, or netlink refuses.
    """
    await pins.cover(bridge, address)
    pyroute2 = await netlink.library()
    async with pyroute2.AsyncIPRoute() as route:
        try:
            tap = await _index(route, name)
            group, master = pins.group_of(address), await _index(route, bridge)
            await route.link("set", index=tap, group=group, master=master, state="up")
        except pyroute2.NetlinkError as err:
            raise HostUnable(f"cannot attach {name} to the bridge {bridge}: {err}") from err


async def ensure_bridge(name: str, subnet: str) -> None:
    """Make the bridge with the first address of the subnet, unless it is there, and its rules; allow forwarding.

    Raises:
        HostUnable: another interface has the name or addresses of the subnet, or the rights are missing.
    """
    network = ipaddress.IPv4Network(subnet)
    if not is_set_up(name, network):
        await _set_up(name, network)
    _sysctl(
        {
            "net/ipv4/ip_forward": "1",
            # A published port on 127.0.0.1 is rewritten to the guest's address on its way out of the bridge.
            f"net/ipv4/conf/{name}/route_localnet": "1",
            f"net/ipv6/conf/{name}/disable_ipv6": "1",
        }
    )
    await pins.write(name, subnet)


async def remove_bridge(name: str) -> None:
    """Remove the bridge; none is no failure."""
    pyroute2 = await netlink.library()
    async with pyroute2.AsyncIPRoute() as route:
        for index in await route.link_lookup(ifname=name):
            await route.link("del", index=index)


def is_set_up(name: str, network: ipaddress.IPv4Network) -> bool:
    """Whether the bridge is as `ensure_bridge` leaves it, as far as the kernel's files and netdevice(7) tell."""
    directory = Path("/sys/class/net") / name
    try:
        forwarded = int((directory / "bridge/group_fwd_mask").read_text(), 16)
        up = int((directory / "flags").read_text(), 16) & _IFF_UP
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            # struct ifreq: the name, then a sockaddr_in with the address in its bytes 4 to 8
            request = struct.pack("16s24x", name.encode())
            address, mask = (fcntl.ioctl(asked, call, request)[20:24] for call in (_SIOCGIFADDR, _SIOCGIFNETMASK))
    except (OSError, ValueError):
        return False
    wanted = (pins.FORWARDED_GROUPS, network[1].packed, network.netmask.packed)
    return bool(up) and (forwarded, address, mask) == wanted


async def _set_up(name: str, network: ipaddress.IPv4Network) -> None:
    pyroute2 = await netlink.library()
    async with pyroute2.AsyncIPRoute() as route:
        try:
            if not await route.link_lookup(ifname=name):
                await _check_free(route, network)
                await route.link("add", ifname=name, kind="bridge")
            index = await _index(route, name)
            await _add_address(route, index, str(network[1]), network.prefixlen)
            await route.link("set", index=index, kind="bridge", br_group_fwd_mask=pins.FORWARDED_GROUPS, state="up")
        except pyroute2.NetlinkError as err:
            raise HostUnable(
                f"cannot make the bridge {name}: {err}. hyperd needs root (CAP_NET_ADMIN); "
                "set HYPER_BRIDGE if the name is taken"
            ) from err


async def _check_free(route: AsyncIPRoute, network: ipaddress.IPv4Network) -> None:
    """Two interfaces with one network: packets for guests would leave by the wrong one, and nobody be told why."""
    async for one in await route.get_addr(family=socket.AF_INET):
        taken = ipaddress.IPv4Interface(f"{one.get_attr('IFA_ADDRESS')}/{one['prefixlen']}").network
        if taken.overlaps(network):
            raise HostUnable(
                f"the subnet {network} overlaps with {taken} of the interface {one.get_attr('IFA_LABEL')}: "
                "set another one (HYPER_SUBNET)"
            )


async def _add_address(route: AsyncIPRoute, index: int, address: str, prefix: int) -> None:
    pyroute2 = await netlink.library()
    try:
        await route.addr("add", index=index, address=address, prefixlen=prefix)
    except pyroute2.NetlinkError as err:
        if err.code != errno.EEXIST:
            raise


async def _index(route: AsyncIPRoute, name: str) -> int:
    found = await route.link_lookup(ifname=name)
    if not found:
        raise HostUnable(f"there is no network interface {name}")
    return int(found[0])


def _sysctl(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        path = Path("/proc/sys") / name
        try:
            if path.read_text().strip() != value:
                path.write_text(value)
        except FileNotFoundError:
            continue  # a kernel without IPv6
        except OSError as err:
            raise HostUnable(f"cannot set {name.replace('/', '.')} to {value}: {err.strerror}") from err
