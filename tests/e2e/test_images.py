"""Images from the command line: built, pushed, saved, loaded, and run as real micro-VMs."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import tarfile
import termios
import time
from typing import TYPE_CHECKING

import pytest

from tests.host import free_port, wait_for
from tests.images.build import build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Images
    from tests.host import Host


def digest_of(host: Host, name: str) -> str:
    found: str = json.loads(host.hyper("inspect", "--type", "image", name).stdout)[0]["digest"]
    return found


def test_build_then_run(host: Host, images: Images, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/page").write_text("from the context")
    (tmp_path / "data/secret").write_text("not to be sent")
    (tmp_path / ".dockerignore").write_text("**/secret\n")
    (tmp_path / "Containerfile").write_text(
        f"FROM {images.busybox}\n"
        "ARG WHO=nobody\n"
        'RUN echo "built for $WHO" > /made && ls /data 2>/dev/null; true\n'
        "COPY data /data\n"
        "USER 1000:1000\n"
        "HEALTHCHECK --interval=60s CMD true\n"
        'ENTRYPOINT ["sh", "-c"]\n'
        'CMD ["id -u; cat /made /data/page; ls /data"]\n'
    )
    name = f"{images.registry.address}/built:1"
    done = host.hyper("build", "-t", name, "--build-arg", "WHO=me", "--iidfile", str(tmp_path / "iid"), str(tmp_path))
    digest = (tmp_path / "iid").read_text()
    assert done.stdout.splitlines() == [digest, f"Tagged: {name}"]
    assert "COPY data /data" in done.stderr
    shown = host.hyper("run", "--rm", name).stdout
    assert shown.split() == ["1000", "built", "for", "me", "from", "the", "contextpage"]
    found = json.loads(host.hyper("inspect", "--type", "image", name).stdout)[0]
    assert found["config"]["Healthcheck"]["Test"] == ["CMD-SHELL", "true"]
    assert found["build"]["args"] == {"WHO": "me"}
    assert found["build"]["containerfile"].startswith("FROM ")
    history = host.hyper("history", "--no-trunc", name).stdout
    assert "COPY" in history
    assert re.search(r"^IMAGE +CREATED +CREATED BY +SIZE +COMMENT", history)
    assert host.hyper("build", "-q", "-t", name, "--build-arg", "WHO=me", str(tmp_path)).stdout == f"{digest}\n"
    host.run("--name", "rebuilt", name, "sleep 600")
    told = json.loads(host.hyper("rebuild", "rebuilt", "--no-cache", "--reason", "a patch", "--format", "json").stdout)
    assert told[0]["changed"] is True
    assert told[0]["rollout"]["state"] == "done"
    after = host.inspect("rebuilt")
    assert after["image_digest"] == told[0]["digest"] != digest
    assert digest_of(host, name) == told[0]["digest"]
    assert "a patch" in host.hyper("history", "rebuilt", "--no-trunc").stdout
    host.hyper("rm", "-f", "rebuilt")
    host.hyper("tag", digest, name)
    assert host.hyper("push", "-q", name).stdout == f"{name}\n"
    host.hyper("rmi", name)
    host.hyper("pull", "-q", name)
    assert digest_of(host, name) == digest
    failed = host.hyper(
        "build", "-f", "-", str(tmp_path), stdin=f"FROM {images.busybox}\nRUN exit 3\n".encode(), check=False
    )
    assert failed.returncode == 125
    assert "the build failed" in failed.stderr.splitlines()[-1]
    assert "exit status 3" in failed.stderr.splitlines()[-1]
    other = host.hyper("rebuild", images.busybox, check=False)
    assert (other.returncode, other.stderr.count("\n")) == (125, 1)
    assert "was not built on this host" in other.stderr
    host.hyper("rmi", "-f", digest, told[0]["digest"])


def test_save_load_tag_and_list(host: Host, images: Images, tmp_path: Path) -> None:
    archive = tmp_path / "two.tar"
    host.hyper("tag", images.busybox, "kept:1")
    host.hyper("save", "-o", str(archive), "kept:1", images.nginx)
    with tarfile.open(archive) as tar:
        listing = tar.extractfile("manifest.json")
        assert listing is not None
        assert json.load(listing)[0]["RepoTags"] == ["kept:1"]
    digest = digest_of(host, "kept:1")
    assert host.hyper("rmi", "kept:1").stdout == "Untagged: docker.io/library/kept:1\n"
    subprocess.run(["gzip", "-1", archive], check=True)
    loaded = host.hyper("load", "-q", stdin=(tmp_path / "two.tar.gz").read_bytes()).stdout.splitlines()
    assert loaded[0].startswith("Loaded image: ")
    assert "Loaded image: docker.io/library/kept:1" in loaded
    assert digest_of(host, "kept:1") == digest
    lines = host.hyper("images", "--filter", "reference=kept", "--format", "{{.Repository}}:{{.Tag}}").stdout
    assert lines == "kept:1\n"
    assert host.hyper("images", "-q", "kept:*").stdout.strip() == digest[7:19]
    assert host.hyper("images", "--filter", "dangling=true", "-q").stdout == ""
    assert digest in host.hyper("images", "--digests", "--no-trunc", "kept").stdout
    assert host.hyper("run", "--rm", "kept:1", "echo", "loaded").stdout == "loaded\n"
    host.hyper("rmi", "kept:1")
    assert host.hyper("rmi", "-f", "kept:1").stdout == ""
    usage = json.loads(
        subprocess.run(
            ["curl", "-sf", "--unix-socket", host.state_dir / "hyperd.sock", "http://x/v1/usage/images"],
            check=True, capture_output=True,
        ).stdout
    )  # fmt: skip
    assert usage["blobs_bytes"] > 1_000_000
    assert usage["size_bytes"] == usage["files_bytes"] + usage["blobs_bytes"] + usage["unused_blobs_bytes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("push", "docker.io/library/nothing"), "there is no image"),
        (("push", "Bad"), "capital letters"),
        (("tag", "nothing", "x"), "there is no image"),
        (("tag", "{busybox}", "x@sha256:1"), "the digest"),
        (("save", "-o", "/nowhere/x", "{busybox}"), "--output /nowhere/x: it cannot be written"),
        (("save", "nothing"), "there is no image"),
        (("load", "-i", "/nowhere"), "--input /nowhere: it cannot be read"),
        (("load", "-q", "-i", "/etc/passwd"), "the archive is refused"),
        (("history", "nothing"), "there is no image"),
        (("images", "--filter", "size=1"), "--filter 'size=1'"),
        (("images", "--filter", "dangling=maybe"), "write dangling=true"),
        (("image", "prune"), "give --force"),
        (("build", "/nowhere"), "the context /nowhere is not a directory"),
        (("build", "-f", "/nowhere", "/tmp"), "there is no /nowhere; name it with --file"),
        (("build", "-f", "-", "-t", "Bad", "/usr/share/doc/zstd"), "capital letters"),
        (("build", "-f", "-", "--target", "a b", "/usr/share/doc/zstd"), "target"),
        (("pull", "--cert-dir", "/nowhere", "{busybox}"), "/nowhere is not a directory"),
        (("pull", "--authfile", "/nowhere", "{busybox}"), "there is no such file; make it with: hyper login"),
        (("login", "-u", "me", "127.0.0.1:1"), "give it on stdin, with --password-stdin"),
        (("login", "--password-stdin", "127.0.0.1:1"), "--password-stdin needs --username"),
        (("login", "-u", "me", "--password-stdin", "127.0.0.1:1"), "the registry 127.0.0.1:1 cannot be reached"),
        (("search", "--limit", "0", "x"), "write a number from 1 to 100"),
        (("search", "127.0.0.1:1/x"), "the registry 127.0.0.1:1 cannot be reached"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(host: Host, images: Images, arguments: tuple[str, ...], said: str) -> None:
    words = [word.format(busybox=images.busybox) for word in arguments]
    done = host.hyper(*words, check=False, stdin=b"FROM scratch\n")
    assert done.returncode == 125
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(host: Host, images: Images) -> None:
    host.hyper("tag", images.nginx, f"{images.registry.address}/bar:1")
    lines = host.hyper("push", f"{images.registry.address}/bar:1").stderr.splitlines()
    assert lines == [f"{images.registry.address}/bar:1: {step}" for step in ("uploading", "done")]
    for command in (("push", f"{images.registry.address}/bar:2"), ("pull", f"{images.registry.address}/bar:2")):
        if command[0] == "push":
            host.hyper("tag", images.nginx, command[1])
        shown = on_a_terminal(host, *command)
        assert f"\r\x1b[J{command[1]}: " in shown
        assert f"Digest: {images.nginx_digest}" in shown
    shown = on_a_terminal(host, "push", f"{images.registry.address}/bar:2")
    assert re.search(r": uploading \[[=> ]{30}\] [0-9.]+[kM]?B/[0-9.]+MB", shown)
    for number in (1, 2):
        host.hyper("rmi", f"{images.registry.address}/bar:{number}")


def on_a_terminal(host: Host, *arguments: str) -> str:
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    with subprocess.Popen(
        [host.hyper_program, *arguments],
        env={**os.environ, **host.env},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(main, 65536):
                shown += piece
        except OSError:  # the terminal's other end is closed
            pass
        os.close(main)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


def test_redis_answers(host: Host, images: Images) -> None:
    images.registry.push(build("redis"), "redis")
    port = free_port()
    check = ("--health-cmd", "redis-cli ping", "--health-interval", "500ms", "--label", "hyper.metrics.tier=deep")
    began = time.monotonic()
    host.run("--name", "cache", *check, "-p", f"127.0.0.1:{port}:6379", f"{images.registry.address}/redis")
    ran_s = time.monotonic() - began

    def ping() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
            one.sendall(b"PING\r\n")
            return one.recv(100) == b"+PONG\r\n"

    wait_for(ping, "redis answers", 60)
    assert host.hyper("exec", "cache", "redis-cli", "set", "a", "1").stdout == "OK\n"
    assert host.hyper("exec", "cache", "id", "-un").stdout == "redis\n"

    wait_for(lambda: host.inspect("cache")["health"] == "healthy", "its check has succeeded")
    phases = host.inspect("cache")["start_phases"]
    itself = {"image", "vm", "agent", "network", "exec"}
    assert set(phases) == itself | {"pull", "healthy"}
    assert 0 < phases["pull"] < ran_s
    assert phases["healthy"] > 0.5, "the first check is made after an interval"

    def told(phase: str) -> float | None:
        return host.value("microvm_start_phase_seconds", name="cache", phase=phase)

    wait_for(lambda: told("healthy") == pytest.approx(phases["healthy"]), "the exporter tells when it became healthy")
    assert told("pull") == pytest.approx(phases["pull"])
    took_s = host.value("microvm_start_seconds", name="cache")
    assert took_s == pytest.approx(sum(phases[phase] for phase in itself))
    host.hyper("restart", "-t", "1", "cache")
    assert set(host.inspect("cache")["start_phases"]) - {"healthy"} == itself, "nothing was pulled for this start"
    host.hyper("rm", "-f", "cache")


def test_python_counts(host: Host, images: Images) -> None:
    images.registry.push(build("python"), "python")
    name = f"{images.registry.address}/python"
    assert host.hyper("run", "--rm", name, "python3", "-c", "print(6 * 7)").stdout == "42\n"


def test_prune_leaves_what_is_used(host: Host, images: Images) -> None:
    host.hyper("tag", images.busybox, "going:1")
    host.hyper("rmi", "going:1")
    used = {digest_of(host, images.busybox), digest_of(host, images.nginx)}
    host.hyper("create", "--name", "one", images.busybox)
    host.hyper("create", "--name", "two", images.nginx)
    removed = host.hyper("image", "prune", "-a", "-f").stdout
    assert "Total reclaimed space: " in removed
    assert not used & set(re.findall(r"sha256:\w+", removed))
    assert host.hyper("start", "one").returncode == 0
