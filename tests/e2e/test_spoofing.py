"""A guest can send as itself alone: not from another's address or MAC, not as the gateway, in no other protocol.

A process with raw sockets in one guest sends frames; what comes out at the tap of another and at the bridge is seen by
the host. Every frame has a word of its own in it, and one that may pass is sent after those that may not.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.fakeguest import build_program
from tests.host import Host, free_port, get, running_host, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Images

ARP, IPV4, IPV6, VLAN, EXPERIMENT = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88B5
EVERYBODY = b"\xff" * 6
LLDP = bytes.fromhex("0180c200000e")
EVERY_PROTOCOL = 0x0003


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_program("frames", tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="module")
def pooled(images: Images) -> Iterator[Host]:
    with running_host(images.busybox, images.nginx, pool_depth=2) as one:
        yield one


class Seen:
    """What passes an interface of the host, in either direction."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_PROTOCOL))
        self._socket.bind((interface, EVERY_PROTOCOL))
        self._socket.setblocking(False)
        self.all = b""

    def has(self, word: bytes) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.all += self._socket.recv(65536) + b"\n"
        return word in self.all

    def close(self) -> None:
        self._socket.close()


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(to: bytes, source: bytes, kind: int, payload: bytes) -> bytes:
    return to + source + struct.pack(">H", kind) + payload


def ip(source: str, to: str, word: bytes) -> bytes:
    """A UDP datagram, to a port that nobody has."""
    udp = struct.pack(">HHHH", 9, 9, 8 + len(word), 0) + word
    head = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0))
    head += socket.inet_aton(source) + socket.inet_aton(to)
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head[10:12] = struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF)
    return bytes(head) + udp


def arp(source: bytes, address: str, target: bytes, asked: str, word: bytes, *, lengths: bytes = b"\x06\x04") -> bytes:
    """A reply, with a word in the padding."""
    head = struct.pack(">HH", 1, IPV4) + lengths + struct.pack(">H", 2)
    return head + source + socket.inet_aton(address) + target + socket.inet_aton(asked) + word


@pytest.mark.parametrize("path", ["template", "pool"])
def test_a_guest_sends_as_itself_alone(request: pytest.FixtureRequest, images: Images, sender: Path, path: str) -> None:
    host: Host = request.getfixturevalue("pooled" if path == "pool" else "host")
    if path == "pool":
        wait_for(lambda: json.loads(host.hyper("info", "--format", "json").stdout)["pool_waiting"] >= 2, "the pool", 60)
    port = free_port()
    host.run("--name", "victim", "-p", f"{port}:80", images.nginx)
    host.run("--name", "spoofer", images.busybox, "sleep", "10000")
    spoofer, victim = host.inspect("spoofer"), host.inspect("victim")
    assert {spoofer["vm"]["start_path"], victim["vm"]["start_path"]} == {path}
    host.hyper("cp", str(sender), "spoofer:/frames")
    own, other = spoofer["network"], victim["network"]
    gateway = re.sub(r"\d+$", "1", own["address"])
    bridge_mac = mac(json.loads(subprocess.run(
        ["ip", "-j", "link", "show", host.bridge], capture_output=True, check=True).stdout)[0]["address"])  # fmt: skip
    a, b = mac(own["mac"]), mac(other["mac"])
    mine, yours = own["address"], other["address"]

    def word() -> bytes:
        return secrets.token_hex(12).encode()

    words = {name: word() for name in (
        "another's address", "another's mac", "another's both", "the gateway's address", "the gateway's both",
        "to the host from another", "arp another", "arp gateway", "arp another's mac", "arp mac of the frame",
        "arp other lengths", "ipv6", "vlan", "vlan 0", "double vlan", "experiment", "lldp",
        *[f"group {number}" for number in range(16)],
    )}  # fmt: skip
    w = words.__getitem__
    tag = lambda number, kind: struct.pack(">HH", number, kind)  # noqa: E731 -- two numbers of a frame
    frames = [
        ethernet(b, a, IPV4, ip(yours, yours, w("another's address"))),
        ethernet(b, b, IPV4, ip(mine, yours, w("another's mac"))),
        ethernet(EVERYBODY, b, IPV4, ip(yours, "255.255.255.255", w("another's both"))),
        ethernet(b, a, IPV4, ip(gateway, yours, w("the gateway's address"))),
        ethernet(b, bridge_mac, IPV4, ip(gateway, yours, w("the gateway's both"))),
        ethernet(bridge_mac, a, IPV4, ip(yours, gateway, w("to the host from another"))),
        ethernet(EVERYBODY, a, ARP, arp(a, yours, EVERYBODY, yours, w("arp another"))),
        ethernet(b, a, ARP, arp(a, gateway, b, yours, w("arp gateway"))),
        ethernet(b, a, ARP, arp(b, mine, b, yours, w("arp another's mac"))),
        ethernet(b, b, ARP, arp(a, mine, b, yours, w("arp mac of the frame"))),
        ethernet(b, a, ARP, arp(a, mine, b, gateway, w("arp other lengths"), lengths=b"\x04\x06")),
        ethernet(b, a, IPV6, b"\x60" + bytes(39) + w("ipv6")),
        ethernet(b, a, VLAN, tag(5, IPV4) + ip(mine, yours, w("vlan"))),
        ethernet(b, a, VLAN, tag(0, IPV4) + ip(mine, yours, w("vlan 0"))),
        ethernet(b, a, 0x88A8, tag(5, VLAN) + tag(5, IPV4) + ip(mine, yours, w("double vlan"))),
        ethernet(b, a, EXPERIMENT, w("experiment")),
        ethernet(LLDP, a, 0x88CC, w("lldp")),
        # A bridge learns from some of these before any rule is asked.
        *[ethernet(LLDP[:5] + bytes([n]), b, 0x88CC, w(f"group {n}")) for n in range(16)],
        *[ethernet(LLDP[:5] + bytes([n]), a, IPV4, ip(mine, yours, w(f"group {n}"))) for n in range(16)],
    ]
    allowed = {name: word() for name in ("unicast", "broadcast", "to the host", "arp")}
    # The bridge knows the victim by what it has sent: without that, nobody could be taken for it.
    assert "Hello" in wait_for(lambda: get(f"http://127.0.0.1:{port}/"), "the published port")
    fair = [
        ethernet(b, a, IPV4, ip(mine, yours, allowed["unicast"])),
        ethernet(EVERYBODY, a, IPV4, ip(mine, "255.255.255.255", allowed["broadcast"])),
        ethernet(bridge_mac, a, IPV4, ip(mine, gateway, allowed["to the host"])),
        ethernet(b, a, ARP, arp(a, mine, b, yours, allowed["arp"])),
    ]
    with (
        contextlib.closing(Seen(other["tap"])) as at_victim,
        contextlib.closing(Seen(host.bridge)) as at_host,
        contextlib.closing(Seen(own["tap"])) as at_spoofer,
    ):
        host.hyper("exec", "spoofer", "/frames", "eth0", *[one.hex() for one in [*frames, *fair]])
        wait_for(lambda: at_victim.has(allowed["arp"]), "the last of them arrives", 10)
        wait_for(lambda: at_host.has(allowed["to the host"]), "the host's arrives", 10)
        for name in ("unicast", "broadcast"):
            assert at_victim.has(allowed[name]), name
        for name, found in words.items():
            assert at_spoofer.has(found), f"{name} was sent"
            assert not at_victim.has(found), name
            # A frame that is dropped may be seen on the tap that it came from, but not on the bridge.
            assert not at_host.has(found), name
    learned = subprocess.run(
        ["bridge", "fdb", "show", "br", host.bridge], capture_output=True, check=True, text=True
    ).stdout
    places = {line.split()[2] for line in learned.splitlines() if line.startswith(other["mac"])}
    assert places == {other["tap"]}, "nobody else is taken for the victim"
    # What is fair goes on: between guests, to the host and the ports that are published.
    assert "Hello" in wait_for(lambda: get(f"http://127.0.0.1:{port}/"), "the published port")
    assert "Hello" in host.hyper("exec", "spoofer", "wget", "-q", "-O", "-", f"http://{yours}/").stdout
    assert host.hyper("exec", "spoofer", "ping", "-c", "1", "-w", "5", gateway).returncode == 0
    host.hyper("rm", "-f", "spoofer", "victim")


def test_the_rules_come_back_with_the_daemon_and_a_start_writes_none(host: Host, images: Images) -> None:
    """The pin costs a start nothing: rules and set are the same before and after; the tap alone is told."""

    def rules() -> str:
        name = f"hyper_{host.bridge}"
        return subprocess.run(
            ["nft", "list", "table", "bridge", name], capture_output=True, check=True, text=True
        ).stdout

    before = rules()
    host.run("--name", "one", images.busybox, "sleep", "10000")
    assert rules() == before
    network = host.inspect("one")["network"]
    link = json.loads(subprocess.run(
        ["ip", "-d", "-j", "link", "show", network["tap"]], capture_output=True, check=True).stdout)[0]  # fmt: skip
    assert int(link["group"]) == int.from_bytes(socket.inet_aton(network["address"]))
    host.hyperd.kill()
    host.start()
    began = time.monotonic()
    assert rules() == before
    assert (
        host.hyper("exec", "one", "ping", "-c", "1", "-w", "5", re.sub(r"\d+$", "1", network["address"])).returncode
        == 0
    )
    assert time.monotonic() - began < 10
