from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runtime.cli import arguments

if TYPE_CHECKING:
    from pathlib import Path


def port(host_ip: str, host_port: int, container_port: int, protocol: str) -> dict[str, Any]:
    return {"host_ip": host_ip, "host_port": host_port, "container_port": container_port, "protocol": protocol}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", port("0.0.0.0", 8080, 80, "tcp")),
        ("127.0.0.1:8080:80", port("127.0.0.1", 8080, 80, "tcp")),
        ("127.0.0.1::80", port("127.0.0.1", 0, 80, "tcp")),
        ("80", port("0.0.0.0", 0, 80, "tcp")),
        ("8080:80/udp", port("0.0.0.0", 8080, 80, "udp")),
        ("53/udp", port("0.0.0.0", 0, 53, "udp")),
        ("65535:1", port("0.0.0.0", 65535, 1, "tcp")),
    ],
)
def test_port(text: str, expected: dict[str, Any]) -> None:
    assert arguments.port(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ":", "80:", "0", "65536", "x:80", "8080:x", "80/sctp", "80/", "1:2:3:4", "localhost:8080:80", "256.0.0.1:1:2",
     "[::1]:80:80", "80-81", "+80", "\u0661:80", "01.2.3.4:1:2", "8080:80/TCP"],
)  # fmt: skip
def test_wrong_port(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|ranges"):
        arguments.port(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1k", 1024),
        ("256m", 256 << 20),
        ("1.5G", 3 << 29),
        ("2GiB", 2 << 30),
        ("3mb", 3 << 20),
        ("5b", 5),
    ],
)
def test_size(text: str, size_bytes: int) -> None:
    assert arguments.size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "-1", "m", "1x", "1 2", "1e3", "nan", "0x10"])
def test_wrong_size(text: str) -> None:
    with pytest.raises(ValueError, match="256m"):
        arguments.size(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", ""])
def test_wrong_cpus(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as 1\.5"):
        arguments.cpus(text)


def test_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "here")
    monkeypatch.delenv("ABSENT", raising=False)
    file = tmp_path / "env"
    file.write_text("\ufeffA=1\n# comment\n\n  B=two = 2 \nOURS\nABSENT\nEMPTY=\r\n")
    assert arguments.variables(str(file)) == ["A=1", "B=two = 2 ", "OURS=here", "EMPTY="]
    file.write_text("A=1\nno name=2\n")
    with pytest.raises(ValueError, match="line 2: 'no name' is not a name"):
        arguments.variables(str(file))
    file.write_bytes(b"A=\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        arguments.variables(str(file))


@pytest.mark.parametrize(
    ("text", "name"), [("TERM", "TERM"), ("sigint", "INT"), ("9", "9"), ("64", "64"), ("RTMIN+1", "RTMIN+1")]
)
def test_signal(text: str, name: str) -> None:
    assert arguments.signal_name(text) == name


@pytest.mark.parametrize("text", ["", "0", "65", "-9", "A B", "SIG"])
def test_wrong_signal(text: str) -> None:
    with pytest.raises(ValueError, match="no signal"):
        arguments.signal_name(text)
