"""Rules, reservations and addresses, without a guest."""

from __future__ import annotations

import socket
import subprocess

import pytest

from runtime.errors import HostUnable, InvalidInput, PortInUse
from runtime.network import links, nft, pins
from runtime.network.ports import PortReservations
from runtime.record import Port


def test_mac_follows_from_the_address() -> None:
    assert pins.mac_of("10.97.0.2") == "52:54:0a:61:00:02"


def test_tap_name_fits_an_interface() -> None:
    assert len(links.tap_name("f" * 64)) == 15


def test_rules_are_what_nft_takes() -> None:
    ports = [
        ("10.97.0.2", Port("0.0.0.0", 8080, 80)),
        ("10.97.0.2", Port("127.0.0.1", 8443, 443)),
        ("10.97.0.3", Port("0.0.0.0", 53, 53, "udp")),
    ]
    text = nft.render("hyper9", "10.97.0.0/16", ports)
    checked = subprocess.run(["nft", "--check", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "8080 : 10.97.0.2 . 80" in text
    assert "127.0.0.1 . 8443 : 10.97.0.2 . 443" in text


@pytest.mark.parametrize(("subnet", "block"), [("10.97.0.0/16", 0), ("10.97.0.0/16", 63), ("192.168.7.0/29", 0)])
def test_the_rules_of_a_bridge_are_what_nft_takes(subnet: str, block: int) -> None:
    text = pins.render("hyper9", subnet, block)
    checked = subprocess.run(["nft", "--check", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_each_address_has_one_mac_and_one_group() -> None:
    assert "174129154 . 52:54:0a:61:00:02 . 10.97.0.2" in pins.render("hyper9", "10.97.0.0/16")
    last = pins.render("hyper9", "10.97.0.0/16", 63)
    assert "174194687 . 52:54:0a:61:ff:ff . 10.97.255.255" in last
    assert "10.98." not in last


async def test_addresses_are_added_when_they_are_needed_and_rules_stay_one(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    async def apply(text: str) -> None:
        written.append(text)

    monkeypatch.setattr(nft, "apply", apply)
    await pins.write("hyper9", "10.97.0.0/16")
    await pins.cover("hyper9", "10.97.0.2")
    await pins.cover("hyper9", "10.97.3.255")
    assert len(written) == 1
    await pins.cover("hyper9", "10.97.4.0")
    await pins.cover("hyper9", "10.97.5.0")
    assert written == [pins.render("hyper9", "10.97.0.0/16"), pins.render("hyper9", "10.97.0.0/16", 1)]
    with pytest.raises(HostUnable, match="no rules yet"):
        await pins.cover("other9", "10.97.0.2")


def test_a_port_is_reserved_and_given_back() -> None:
    ports = PortReservations()
    (chosen,) = ports.reserve("one", [Port("127.0.0.1", 0, 80)])
    assert chosen.host_port > 0
    with pytest.raises(PortInUse, match=str(chosen.host_port)):
        ports.reserve("two", [chosen])
    ports.release("one")
    assert ports.reserve("two", [chosen]) == (chosen,)
    ports.release("two")


def test_all_ports_or_none() -> None:
    ports = PortReservations()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = probe.getsockname()[1]
        with pytest.raises(PortInUse):
            ports.reserve("one", [Port("127.0.0.1", free, 80), Port("127.0.0.1", busy, 81)])
        with socket.socket() as again:
            again.bind(("127.0.0.1", free))


def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"203\.0\.113\.1"):
        PortReservations().reserve("one", [Port("203.0.113.1", 8080, 80)])


def another_server(address: tuple[str, int], *, shares: bool) -> socket.socket:
    """One that listens, as servers do, with or without SO_REUSEADDR and SO_REUSEPORT."""
    server = socket.socket()
    try:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT) if shares else ():
            server.setsockopt(socket.SOL_SOCKET, option, 1)
        server.bind(address)
        server.listen()
    except OSError:
        server.close()
        raise
    return server


@pytest.mark.parametrize("host_ip", ["0.0.0.0", "127.0.0.1"])
@pytest.mark.parametrize("chosen", [False, True], ids=["by the kernel", "by the user"])
def test_whoever_comes_before_a_port_is_published_is_refused(host_ip: str, chosen: bool) -> None:
    """And is not left with a connection that nobody accepts; while no other server gets the port."""
    ports = PortReservations()
    (port,) = ports.reserve("one", [Port(host_ip, 0, 80)])
    if chosen:
        ports.release("one")
        ports.reserve("one", [port])
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port.host_port), timeout=5)
        for address in ("0.0.0.0", "127.0.0.1"):
            for shares in (False, True):
                with pytest.raises(OSError, match="in use"):
                    another_server((address, port.host_port), shares=shares)
            with pytest.raises(PortInUse):
                ports.reserve("two", [Port(address, port.host_port, 80)])
    ports.release("one")
    another_server((host_ip, port.host_port), shares=False).close()


def test_a_server_that_was_about_to_listen_cannot_once_the_port_is_reserved() -> None:
    ports = PortReservations()
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        ports.reserve("one", [Port("127.0.0.1", server.getsockname()[1], 80)])
        with pytest.raises(OSError, match="in use"):
            server.listen()
        ports.release("one")
        server.listen()
