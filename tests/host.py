"""A host of its own for a test: daemons with their own directories, bridge, control groups and ports.

Nothing of it is shared with a real installation on the same machine, and `close` asserts that nothing of it is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]
KERNELS = Path(os.environ.get("HYPER_TEST_KERNELS", "/var/lib/hyper/kernels"))
RUN = Path("/run")  # where hosts have their state directories
READY_TIMEOUT_S = 60.0


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 30.0, interval_s: float = 0.05) -> Any:
    """What `condition` returns as soon as it is true; fails the test at the deadline with the last error it raised."""
    deadline = time.monotonic() + timeout_s
    error: Exception | None = None
    while True:
        try:
            found = condition()
        except (OSError, ValueError, KeyError, IndexError, AssertionError) as err:
            found, error = None, err
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s ({error!r})")
        time.sleep(interval_s)  # between two looks at the condition


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(url: str, timeout_s: float = 5.0, headers: Mapping[str, str] | None = None) -> str:
    """The body behind a URL."""
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 -- servers of the test itself
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310 -- same
        body: bytes = answer.read()
        return body.decode()


_reserved: list[int] = []  # descriptors whose locks keep a network for this process until it ends


def _free_network() -> int:
    """The third number of a network 10.98.x.0/24 that no other host has had, of this or another running process."""
    links = json.loads(subprocess.run(["ip", "-j", "-4", "addr"], capture_output=True, check=True).stdout)
    taken = {address["local"].rpartition(".")[0] for link in links for address in link["addr_info"]}
    free = [number for number in range(1, 250) if f"10.98.{number}" not in taken]
    for third in random.sample(free, len(free)):
        lock = os.open(f"/run/lock/hyper-test-network-{third}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        _reserved.append(lock)
        return third
    raise AssertionError("no network 10.98.x.0/24 is free")


class Daemon:
    """One background process of a host, with its log."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.argv = list(argv)
        self.env = dict(env)
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.argv, env={**os.environ, **self.env}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def ready(self, condition: Callable[[], Any], timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until the condition holds; a daemon that ends meanwhile fails the test with its log."""

        def holds() -> Any:
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"{self.argv[0]} ended:\n{self.log.read_text()[-3000:]}")
            return condition()

        wait_for(holds, f"{Path(self.argv[0]).name} is ready", timeout_s)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as an operator would; returns its exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


class Host:
    """hyperd and hyper-exporter with `hyper` to drive them. `settings` are more members of the configuration."""

    def __init__(self, **settings: object) -> None:
        tag = secrets.token_hex(2)
        self.state_dir = RUN / f"hp{tag}"
        self.data_dir = Path(f"/var/tmp/hyper-test-{tag}")  # on a disk: images are sparse files of 10 GB
        self.data_dir.mkdir(mode=0o711)
        self.state_dir.mkdir(mode=0o755)
        (self.data_dir / "kernels").symlink_to(KERNELS)
        self.bridge = f"hyt{tag}"
        self.cgroup_parent = f"hyper-test-{tag}"
        self.exporter = f"127.0.0.1:{free_port()}"
        third = _free_network()
        values = {
            "state_dir": self.state_dir,
            "data_dir": self.data_dir,
            "bridge": self.bridge,
            "subnet": f"10.98.{third}.0/24",
            "cgroup_parent": self.cgroup_parent,
            "uid_base": 1_000_000 + 100_000 * third,  # those of the pool begin 65 536 after it
            "exporter_listen": self.exporter,
            "exporter_url": f"http://{self.exporter}",
            "interval_s": 1,
            "pool_depth": 0,
            "template_images": 0,
            "qemu_dir": self.data_dir / "qemu",  # none: the distribution's, wherever the tests run
            **settings,
        }
        self.env = {f"HYPER_{name.upper()}": str(value) for name, value in values.items()}
        programs = Path(sys.executable).parent
        self.hyper_program = str(programs / "hyper")
        self.hyperd = Daemon([str(programs / "hyperd")], self.env, self.data_dir / "hyperd.log")
        self.hyper_exporter = Daemon([str(programs / "hyper-exporter")], self.env, self.data_dir / "exporter.log")

    def start(self) -> None:
        """Start the runtime."""
        self.hyperd.start()
        self.hyperd.ready(lambda: self.hyper("info", check=False).returncode == 0)

    def start_exporter(self) -> None:
        """Start the exporter."""
        self.hyper_exporter.start()
        self.hyper_exporter.ready(lambda: "hyper_" in self.metrics())

    def hyper(
        self, *arguments: str, check: bool = True, timeout_s: float = 120.0, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line; with `check` a failure fails the test and shows what was printed."""
        done = subprocess.run(
            [self.hyper_program, *arguments],
            env={**os.environ, **self.env},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        text = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if check and text.returncode != 0:
            log = self.hyperd.log.read_text()[-2000:] if self.hyperd.log.exists() else ""
            raise AssertionError(f"hyper {' '.join(arguments)}: {text.returncode}\n{text.stdout}{text.stderr}\n{log}")
        return text

    def run(self, *arguments: str) -> str:
        """`hyper run -d …`; returns the id."""
        return self.hyper("run", "-d", *arguments).stdout.strip()

    def inspect(self, container: str) -> dict[str, Any]:
        """The container, as the API has it."""
        found: list[dict[str, Any]] = json.loads(self.hyper("inspect", container).stdout)
        return found[0]

    def metrics(self, accept: str = "text/plain") -> str:
        """What the exporter says."""
        return get(f"http://{self.exporter}/metrics", headers={"Accept": accept})

    def value(self, metric: str, /, **labels: str) -> float | None:
        """One sample of the exporter's: the first whose labels fit; None if there is none."""
        for line in self.metrics().splitlines():
            head, _, number = line.rpartition(" ")
            found, _, rest = head.partition("{")
            if found == metric and all(f'{key}="{value}"' in rest for key, value in labels.items()):
                return float(number)
        return None

    def close(self) -> None:
        """Remove every container, end the daemons, and assert that nothing is left."""
        try:
            if self.hyperd.process is not None:
                if self.hyperd.process.poll() is not None:
                    self.start()
                names = self.hyper("ps", "-a", "-q", "--no-trunc").stdout.split()
                if names:
                    self.hyper("rm", "-f", *names)
            exporter_code, daemon_code = self.hyper_exporter.stop(), self.hyperd.stop()
            subprocess.run(
                [*self.hyperd.argv, "--cleanup"], env={**os.environ, **self.env}, check=True, capture_output=True
            )
            assert self.leftovers() == []
            assert not self.hyperd.log.exists() or "QEMU crashed" not in self.hyperd.log.read_text()
            assert exporter_code in {0, -signal.SIGKILL}
            assert daemon_code in {0, -signal.SIGKILL}
        finally:
            self.hyper_exporter.stop()
            self.hyperd.stop()
            shutil.rmtree(self.state_dir, ignore_errors=True)
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """Whatever of this host is still in the kernel or among the processes, besides its daemons."""
        links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
        found = [one["ifname"] for one in links if self.bridge in (one["ifname"], one.get("master"))]
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, check=True, text=True).stdout
        found += [line for line in tables.splitlines() if self.bridge in line]
        # Unlike glob(), walk() does not mind that the group of another host goes while it looks.
        walked = os.walk("/sys/fs/cgroup")
        found += [f"{at}/{self.cgroup_parent}" for at, names, _ in walked if self.cgroup_parent in names]
        base = int(self.env["HYPER_UID_BASE"])
        uids = {*range(base, base + 300), *range(base + 65536, base + 65536 + 4096)}
        for one in psutil.process_iter(["pid", "name", "uids", "status"]):
            # One that has ended and waits for init to take note is none of ours any more.
            if one.info["uids"].real in uids and one.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(f"process {one.pid}: {one.info['name']}")
        return found


@contextlib.contextmanager
def running_host(*pulled: str, kind: type[Host] = Host, **settings: object) -> Iterator[Host]:
    """A host of these settings with the images pulled, its template ready and its pool full if it has them."""
    one = kind(**{"accel": "tcg", **settings})
    try:
        one.start()
        for image in pulled:
            one.hyper("pull", image)
        if one.env.get("HYPER_TEMPLATE") != "false":
            wait_for(lambda: about(one)["templates_ready"] >= 1, "the template is built", 60)
        wait_for(lambda: about(one)["pool_waiting"] >= int(one.env["HYPER_POOL_DEPTH"]), "the pool is full", 60)
        yield one
    except BaseException:
        print(one.hyperd.log.read_text()[-8000:])
        raise
    finally:
        one.close()


def about(host: Host) -> dict[str, Any]:
    """What `hyper info` says."""
    found: dict[str, Any] = json.loads(host.hyper("info", "--format", "json").stdout)
    return found
