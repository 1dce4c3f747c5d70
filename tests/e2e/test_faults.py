"""What a user does wrong, and what the world does: one clear line, the right exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.contract.images import layouts
from tests.host import Host, free_port

if TYPE_CHECKING:
    from tests.e2e.conftest import Images


def state_of(host: Host) -> dict[str, object]:
    """All that a failed command could leave behind."""
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
    # Groups of other tests come and go meanwhile, which os.walk takes in its stride and a glob does not.
    groups = [
        f"{parent}/{name}"
        for parent, names, _ in os.walk("/sys/fs/cgroup")
        if parent.endswith(f"/{host.cgroup_parent}")
        for name in names
    ]
    table = subprocess.run(
        ["nft", "list", "table", "ip", f"hyper_{host.bridge}"], capture_output=True, check=True, text=True
    ).stdout
    return {
        "taps": sorted(one["ifname"] for one in links if one.get("master") == host.bridge),
        "groups": sorted(groups),
        "rules": table,
        "containers": host.hyper("ps", "-a", "-q", "--no-trunc").stdout,
        "images": host.hyper("images", "--format", "json").stdout,
        "directories": sorted(
            str(path)
            for parent in (host.state_dir / "containers", host.data_dir / "containers", host.data_dir / "images")
            for path in parent.iterdir()
        ),
        "processes": host.leftovers()[1:],
    }


def refused(host: Host, *arguments: str, code: int = 125) -> str:
    """Run it, and assert that it failed in one line and left the host as it was; returns the line."""
    before = state_of(host)
    done = host.hyper(*arguments, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("hyper: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert state_of(host) == before
    return lines[0]


def test_unknown_image(host: Host, images: Images) -> None:
    assert "nosuch" in refused(host, "run", f"{images.registry.address}/nosuch")
    assert "nosuch" in refused(host, "pull", f"{images.registry.address}/nosuch")


def test_unreachable_registry(host: Host) -> None:
    line = refused(host, "run", f"127.0.0.1:{free_port()}/nginx")
    assert "127.0.0.1" in line
    assert "refused" in line or "reach" in line


def test_wrong_digest(host: Host, images: Images) -> None:
    assert "sha256:" in refused(host, "run", f"{images.nginx}@sha256:{'0' * 64}")


def test_image_of_another_architecture(host: Host, images: Images, tmp_path: Path) -> None:
    layouts.write_layout(tmp_path / "arm", [layouts.layer(*layouts.busybox_root())], architecture="arm64")
    copy(tmp_path / "arm", f"{images.registry.address}/arm:latest")
    assert "arm64" in refused(host, "run", f"{images.registry.address}/arm")


@pytest.mark.parametrize("name", ["../../../../../../escaped", "/../../escaped"])
def test_layer_that_leaves_its_root(host: Host, images: Images, tmp_path: Path, name: str) -> None:
    evil = layouts.layer(*layouts.busybox_root(), layouts.entry(name, data=b"out"))
    layouts.write_layout(tmp_path / "evil", [evil])
    reference = f"{images.registry.address}/evil:{abs(hash(name))}"
    copy(tmp_path / "evil", reference)
    assert "layer" in refused(host, "pull", reference)
    assert not Path("/escaped").exists()


def test_layer_that_writes_through_a_symlink(host: Host, images: Images, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = layouts.entry("way", tarfile.SYMTYPE, linkname=str(outside))
    evil = [layouts.layer(*layouts.busybox_root(), link), layouts.layer(layouts.entry("way/escaped", data=b"out"))]
    layouts.write_layout(tmp_path / "link", evil)
    copy(tmp_path / "link", f"{images.registry.address}/link:latest")
    host.hyper("pull", f"{images.registry.address}/link", check=False)
    assert list(outside.iterdir()) == []


def test_name_already_used(host: Host, images: Images) -> None:
    host.run("--name", "taken", images.busybox, "sleep", "600")
    assert "taken" in refused(host, "run", "-d", "--name", "taken", images.busybox, "true")


def test_port_already_bound(host: Host, images: Images) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert str(port) in refused(host, "run", "-d", "-p", f"{port}:80", images.nginx)
        assert str(port) in refused(host, "run", "-d", "-p", f"127.0.0.1:{port}:80", images.nginx)
    host.run("--name", "first", "-p", f"{port}:80", images.nginx)
    assert str(port) in refused(host, "run", "-d", "-p", f"{port}:80", images.nginx)


def test_command_that_is_not_there_leaves_nothing(host: Host, images: Images) -> None:
    assert "nosuch" in refused(host, "run", "-d", images.busybox, "nosuch", code=127)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--memory", "lots"), "memory"),
        (("--memory", "1k"), "memory"),
        (("--cpus", "0"), "cpus"),
        (("-p", "99999:80"), "99999"),
        (("-p", "x:y"), "-p"),
        (("--name", "no spaces"), "name"),
        (("-e", "=x"), "-e"),
        (
            (
                "--entrypoint",
                "",
            ),
            "command",
        ),
    ],
)
def test_wrong_flags(host: Host, images: Images, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(host, "run", "-d", *arguments, images.busybox)


def test_no_such_container(host: Host) -> None:
    for command in ("logs", "stop", "inspect", "start"):
        assert "nosuch" in refused(host, command, "nosuch", code=host.hyper(command, "nosuch", check=False).returncode)
    assert host.hyper("exec", "nosuch", "true", check=False).returncode != 0


def daemon_says(**settings: object) -> str:
    """What hyperd prints when it cannot start; it must end with 1, in one line."""
    one = Host(**settings)
    try:
        done = subprocess.run(
            one.hyperd.argv, env={**os.environ, **one.env}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]
    finally:
        one.close()


def test_no_qemu() -> None:
    line = daemon_says(accel="tcg", qemu="qemu-nosuch")
    assert "qemu-nosuch" in line


def test_no_kernel(tmp_path: Path) -> None:
    line = daemon_says(accel="tcg", kernel=tmp_path / "nosuch")
    assert "HYPER_KERNEL" in line


def test_not_a_kernel(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a kernel" * 100)
    assert "not a bootable" in daemon_says(accel="tcg", kernel=tmp_path / "text")


def test_a_subnet_that_another_interface_has(host: Host) -> None:
    line = daemon_says(accel="tcg", subnet=host.env["HYPER_SUBNET"])
    assert f"{host.env['HYPER_SUBNET']} of the interface {host.bridge}" in line
    assert "HYPER_SUBNET" in line


def test_no_root(host: Host) -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *host.hyperd.argv],
        env={**os.environ, **host.env},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "root" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_daemons_on_one_directory(host: Host) -> None:
    done = subprocess.run(
        host.hyperd.argv, env={**os.environ, **host.env}, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 1
    assert "another hyperd" in done.stderr
    assert host.hyper("info").returncode == 0


def copy(layout: Path, reference: str) -> None:
    subprocess.run(
        [
            "skopeo",
            "copy",
            "-q",
            "--insecure-policy",
            "--dest-tls-verify=false",
            f"oci:{layout}:image",
            f"docker://{reference}",
        ],
        check=True,
        capture_output=True,
    )
