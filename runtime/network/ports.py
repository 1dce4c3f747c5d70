"""Reservation of host ports: a bound socket for each, so that a taken port is found before a VM starts."""

from __future__ import annotations

import dataclasses
import errno
import socket
from typing import TYPE_CHECKING

from runtime.errors import InvalidInput, PortInUse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.record import Port


class PortReservations:
    """Sockets that hold the published ports of running containers.

    They do not listen: packets are rewritten before they reach a socket of the host, and whoever comes before the port
    is published is refused at once, not left to wait for an answer.
    """

    def __init__(self) -> None:
        self._sockets: dict[str, list[socket.socket]] = {}

    def reserve(self, container_id: str, ports: Iterable[Port]) -> tuple[Port, ...]:
        """Bind all the ports for the container, or none; returns them with a number in place of each host port 0.

        Raises:
            PortInUse: somebody listens there already.
            InvalidInput: the address is not of this host, or the port needs a right that is missing.
        """
        self.release(container_id)
        held: list[socket.socket] = []
        wanted = tuple(ports)
        try:
            for port in wanted:
                held.append(_bind(port))  # noqa: PERF401 -- what is bound so far must be known if the next one fails
        except BaseException:
            for one in held:
                one.close()
            raise
        self._sockets[container_id] = held
        return tuple(
            dataclasses.replace(port, host_port=one.getsockname()[1]) for port, one in zip(wanted, held, strict=True)
        )

    def transfer(self, old: str, new: str) -> None:
        """What one container holds is another one's from now on; the sockets stay as they are."""
        held = self._sockets.pop(old, [])
        self.release(new)
        if held:
            self._sockets[new] = held

    def release(self, container_id: str) -> None:
        """Give the container's ports back; a container that holds none is no failure."""
        for held in self._sockets.pop(container_id, ()):
            held.close()


def _bind(port: Port) -> socket.socket:
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    held = socket.socket(socket.AF_INET, kind)
    try:
        if kind == socket.SOCK_STREAM:
            _bind_tcp(held, (port.host_ip, port.host_port))
        else:
            held.bind((port.host_ip, port.host_port))
    except OSError as err:
        held.close()
        where = f"{port.host_ip}:{port.host_port}/{port.protocol}"
        if err.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {where} is already in use on this host: publish another one (-p) or stop what listens there",
                field="ports",
            ) from err
        raise InvalidInput(f"cannot publish {where}: {err.strerror}", field="ports") from err
    return held


def _bind_tcp(held: socket.socket, address: tuple[str, int]) -> None:
    """Bind a socket that does not listen, at a port where nobody else can listen while it is held."""
    # Connections of an earlier server in TIME_WAIT are no reason to refuse; a listener is.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as chosen:
        chosen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        chosen.bind(address)
        held.bind(chosen.getsockname())  # one that the kernel had chosen for it would be lost with the listening
    # Only who listens is told of all others that do, and only who does not share keeps them from it.
    held.listen(1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    held.shutdown(socket.SHUT_RD)  # it listens no more, and stays bound (tcp_disconnect in linux/net/ipv4/tcp.c)
