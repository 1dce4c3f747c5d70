"""The load of the storm: two workers that do of everything what they can, and remember what they were promised."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.calls import Chunks
from runtime.client import ApiError, Client, DaemonUnreachable
from runtime.images import reference

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.host import Host

MAX_CONTAINERS = 4
VOLUME_BYTES = 16 << 20
SAID = "/dev/shm/said"  # in the guest, so that it is gone with the VM
EXPECTED = (404, 409)  # a volume in use, above all
# A container that ends by itself may do so meanwhile.
MAY_END = ("the guest agent refused hyper-archive", "the guest's streams port is closed")
# Each kind comes up once before any comes up again, so that none is left to chance. A run comes up more often.
KINDS = (
    "run", "run", "finish", "run_from_volume", "temporary", "stop", "remove", "restart", "execute", "pause", "rename",
    "copy", "copy_of_ended", "commit", "pull", "remove_image", "volume", "remove_volume", "snapshot",
    "volume_of_snapshot", "remove_snapshot", "update",
)  # fmt: skip


@dataclass(slots=True)
class Promise:
    """What is owed for a container that was started: its exit code, its log line once a start, and whether it runs.

    `volume`: the volume that it has. `copied`: what was copied into it, and must be there at the end.
    """

    code: int
    starts: int = 1
    running: bool = True
    volume: str | None = None
    copied: str | None = None


class Lacking(Exception):  # noqa: N818 -- not an error either
    """There is nothing to do it to: something of another kind is to be done first."""


class CutOff(Exception):  # noqa: N818 -- not an error: the daemon was killed meanwhile
    """Whether it happened nobody knows."""


def in_turn(*calls: Callable[[], object]) -> Callable[[], None]:
    """All of them, one after the other."""

    def call() -> None:
        for one in calls:
            one()

    return call


@dataclass(slots=True)
class Load:
    """One worker. What it names begins with its number, so that nobody else's doing changes what it was promised.

    What a command that was cut off was about is in `unsure`: it may have happened or not.
    """

    host: Host
    client: Client
    image: str
    pulled: str
    number: int
    random: random.Random
    promised: dict[str, Promise] = field(default_factory=dict)
    volumes: set[str] = field(default_factory=set)
    snapshots: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)  # what should not have been refused
    made: int = 0
    _deck: list[str] = field(default_factory=list)

    def until(self, first: str | None = None) -> None:
        """Do one thing after the other, `first` before all, until something is cut off."""
        while True:
            if not self._deck:
                self._deck = self.random.sample(KINDS, len(KINDS))
            kind, first = first or self._deck.pop(), None
            try:
                if getattr(self, f"_{kind}")():
                    self.done[kind] += 1
            except Lacking as lacking:
                self._deck += [kind, str(lacking)]
            except CutOff:
                self.cut[kind] += 1
                self.random.shuffle(self._deck)  # else what takes long would be all that is tried on a slow machine
                return

    def _name(self, kind: str) -> str:
        self.made += 1
        return f"{kind}{self.number}-{self.made}"

    def _call(self, call: Callable[[], object], *names: str) -> bool:
        """Whether it was done; about what was cut off, or refused in the middle, `names`, nothing is sure any more."""
        self.unsure.update(names)
        try:
            call()
        except DaemonUnreachable as err:
            raise CutOff from err
        except ApiError as err:
            text = str(err).replace(names[0], "…")[:100]
            self.refused[text] += 1
            if err.status not in EXPECTED and not text.startswith(MAY_END):
                self.wrong.append(f"{names[0]}: {err}")
            return False
        self.unsure.difference_update(names)
        return True

    def _hyper(self, *arguments: str) -> bool:
        """The same by the command line, whose user never sees a traceback."""
        done = self.host.hyper(*arguments, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode and "hyperd" in done.stderr:  # is not running, or broke off
            raise CutOff
        return done.returncode == 0

    def _some(self, *, running: bool = True) -> str:
        found = {name for name, promise in self.promised.items() if promise.running == running}
        return self._one_of(found, "run" if running else "finish")

    def _free_volume(self) -> str:
        return self._one_of(self.volumes - {promise.volume for promise in self.promised.values()}, "volume")

    def _one_of(self, names: set[str], made_by: str) -> str:
        if not names:
            raise Lacking(made_by)
        return self.random.choice(sorted(names))

    # --- containers

    def _run(self, *, ends: bool = False, volume: str | None = None) -> bool:
        if len(self.promised) >= MAX_CONTAINERS:
            return self._remove()
        name, code = self._name("storm"), self.random.randrange(1, 100)
        # One ends by itself, perhaps while no daemon is there to see it; the others when the test is over.
        life = f"sleep 0.{self.random.randrange(10)}" if ends else "while [ ! -e /end ]; do sleep 0.1; done"
        script = f"echo promised {code}; > {SAID}; {life}; exit {code}"
        image = self.random.choice([self.image, *sorted(self.images)])
        spec = {"image": image, "name": name, "args": ["sh", "-c", script], "ports": [{"container_port": 80}]}
        if volume is not None:
            spec["volumes"] = [{"source": volume, "target": "/data"}]
        if not self._call(in_turn(lambda: self.client.create(spec), lambda: self.client.start(name)), name):
            return False
        self.promised[name] = Promise(code, running=not ends, volume=volume)
        return True

    def _finish(self) -> bool:
        return self._run(ends=True)

    def _run_from_volume(self) -> bool:
        return self._run(volume=self._free_volume())

    def _temporary(self) -> bool:
        """One that is removed when it ends, with its volume; nothing of it may be left, whatever was cut off."""
        name = self._name("temporary")
        spec = {"image": self.image, "name": name, "args": ["sleep", "0.2"], "auto_remove": True}
        spec["volumes"] = [{"target": "/own"}]
        return self._call(in_turn(lambda: self.client.create(spec), lambda: self.client.start(name)), name)

    def _stop(self) -> bool:
        name = self._some()
        del self.promised[name]
        self.unsure.add(name)
        return self._hyper("stop", "-t", "0", name)

    def _remove(self) -> bool:
        name = self._one_of(set(self.promised), "run")
        del self.promised[name]
        if self._call(lambda: self.client.remove(name, force=True), name):
            try:
                self.client.container(name)
            except ApiError:
                return True
            except DaemonUnreachable as err:
                raise CutOff from err
            raise AssertionError(f"{name} was removed, and is there")
        return False

    def _restart(self) -> bool:
        name = self._some()
        # Its line is owed as soon as it has written it, whether or not the log has it; before, it may end without one.
        if not self._hyper("exec", name, "sh", "-c", f"while [ ! -e {SAID} ]; do sleep 0.01; done"):
            raise AssertionError(f"{name} was started, and does not run")
        promise = self.promised.pop(name)
        if not self._call(lambda: self.client.restart(name, 0), name):
            return False
        promise.starts += 1
        promise.copied = None  # the end of a VM may come before its guest has written back
        self.promised[name] = promise
        return True

    def _pause(self) -> bool:
        name = self._some()
        promise = self.promised.pop(name)
        if not self._call(in_turn(lambda: self.client.pause(name), lambda: self.client.unpause(name)), name):
            return False
        self.promised[name] = promise
        return True

    def _update(self) -> bool:
        name = self._some()
        return self._call(lambda: self.client.update(name, cpus=0.9), name)

    def _rename(self) -> bool:
        name = self._one_of(set(self.promised), "run")
        promise, new = self.promised.pop(name), self._name("renamed")
        if not self._call(lambda: self.client.rename(name, new), name, new):
            return False
        self.promised[new] = promise
        return True

    def _execute(self) -> bool:
        name = self._some()
        return self._hyper("exec", name, "sh", "-c", "true")

    # --- files

    def _copy(self) -> bool:
        name = self._some()
        token = f"{self.random.randrange(10**9)}"
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            info = tarfile.TarInfo("copied")
            info.size = len(token)
            tar.addfile(info, io.BytesIO(token.encode()))
        self.promised[name].copied = None
        path = f"/v1/containers/{name}/archive?path=/"
        if self._call(lambda: self.client.call("PUT", path, Chunks([archive.getvalue()])), f"file of {name}"):
            self.promised[name].copied = token
            return True
        return False

    def _copy_of_ended(self) -> bool:
        """Of one that does not run: it gets a VM for that, of which nothing may be left."""
        name = self._some(running=False)
        path = f"/v1/containers/{name}/archive?path=/etc"
        return self._call(lambda: list(self.client.stream("GET", path)), f"file of {name}")

    # --- images

    def _commit(self) -> bool:
        name, image = self._some(), str(reference.parse(self._name("commit")))
        done = self._call(lambda: self.client.container_call(name, "commit", {"reference": image}), image)
        if done:
            self.images.add(image)
        return done

    def _pull(self) -> bool:
        if self.pulled in self.images:
            return self._remove_image(self.pulled)
        done = self._call(lambda: list(self.client.pull(self.pulled)), self.pulled)
        if done:
            self.images.add(self.pulled)
        return done

    def _remove_image(self, image: str | None = None) -> bool:
        image = image or self._one_of(self.images, "pull")
        self.images.discard(image)
        return self._call(lambda: self.client.remove_image(image), image)

    # --- volumes

    def _volume(self, snapshot: str | None = None) -> bool:
        name = self._name("volume")
        body = {"name": name, "snapshot": snapshot} if snapshot else {"name": name, "size_bytes": VOLUME_BYTES}
        done = self._call(lambda: self.client.call("POST", "/v1/volumes", body), name)
        if done:
            self.volumes.add(name)
        return done

    def _remove_volume(self) -> bool:
        name = self._free_volume()
        self.volumes.discard(name)
        return self._call(lambda: self.client.call("DELETE", f"/v1/volumes/{name}"), name)

    def _snapshot(self) -> bool:
        some, name = self._one_of(self.volumes, "volume"), self._name("snapshot")
        taken = [promise.volume for promise in self.promised.values() if promise.running and promise.volume]
        body = {"name": name, "volume": self.random.choice(taken or [some])}
        done = self._call(lambda: self.client.call("POST", "/v1/snapshots", body), name)
        if done:
            self.snapshots.add(name)
        return done

    def _volume_of_snapshot(self) -> bool:
        return self._volume(self._one_of(self.snapshots, "snapshot"))

    def _remove_snapshot(self) -> bool:
        name = self._one_of(self.snapshots, "snapshot")
        self.snapshots.discard(name)
        return self._call(lambda: self.client.call("DELETE", f"/v1/snapshots/{name}"), name)
