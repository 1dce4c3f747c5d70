"""Options and commands of `docker` that `hyper` does not have, and why.

Whoever types one is told, and `docs/reference/docker.md` has the same list. Imported only when a line was wrong.
"""

from __future__ import annotations

from runtime.client import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_BRIDGE = "every container has one address in the one network there is"
_DNS = "a micro-VM resolves names as its host does"
_OWN_KERNEL = "each container has a kernel of its own, and shares no namespace with the host or with others"
_WEIGHT = "CPUs are limited, not weighted: use --cpus"
_BLOCK = "disks are not throttled"
_MEMORY = "a micro-VM has the memory of its limit and no swap: use --memory"
_DEVICE = "a micro-VM sees no device of the host"
_WINDOWS = "it is for Windows"
_CAPABILITIES = "rights in a container are Docker's usual ones but MKNOD, and the border is the VM: leave it out"
_CHECKPOINT = "there are no checkpoints of containers"
_TRUST = "signatures are not checked; name an image by its digest"
_PLATFORM = "there is linux/amd64 alone: leave it out"
_FILTER = "prune takes no filter: list with a filter, and remove what it shows"
_CPUS = "CPUs are counted: use --cpus"
_CGROUP = "its place is one of hyperd's own, so that its metrics are found"
_CLUSTER = "there are no cluster volumes"
_BUILDKIT = "images are built by buildah, without BuildKit"
_BUILD_VM = "a build has no limits of its own"

CREATE: Mapping[str, str] = {
    "--add-host": f"{_DNS}: write into its /etc/hosts, or use addresses",
    "--annotation": "use --label",
    "--blkio-weight": _BLOCK, "--blkio-weight-device": _BLOCK,
    "--cap-add": _CAPABILITIES, "--cap-drop": _CAPABILITIES,
    "--cgroup-parent": _CGROUP, "--cgroupns": _OWN_KERNEL,
    "--cpu-count": _WINDOWS, "--cpu-percent": _WINDOWS,
    "--cpu-period": _CPUS, "--cpu-quota": _CPUS, "--cpu-rt-period": _CPUS, "--cpu-rt-runtime": _CPUS,
    "-c --cpu-shares": _WEIGHT, "--cpuset-cpus": _CPUS, "--cpuset-mems": _CPUS,
    "--device": _DEVICE, "--device-cgroup-rule": _DEVICE,
    "--device-read-bps": _BLOCK, "--device-read-iops": _BLOCK,
    "--device-write-bps": _BLOCK, "--device-write-iops": _BLOCK,
    "--disable-content-trust": _TRUST,
    "--dns": _DNS, "--dns-opt --dns-option": _DNS, "--dns-search": _DNS,
    "--domainname": "use --hostname web.example.org",
    "--gpus": _DEVICE, "--group-add": "give the group with --user USER:GROUP, or write it into the image's /etc/group",
    "--health-start-interval": "checks in the start period come at --health-interval",
    "--io-maxbandwidth": _WINDOWS, "--io-maxiops": _WINDOWS,
    "--ip": _BRIDGE, "--ip6": _BRIDGE, "--ipc": _OWN_KERNEL, "--isolation": _WINDOWS,
    "--kernel-memory": _MEMORY,
    "--link": "containers find each other by address: see hyper inspect", "--link-local-ip": _BRIDGE,
    "--log-driver": "what it writes is kept by hyperd: see hyper logs", "--log-opt": "logs have a bounded size",
    "--mac-address": "it follows from the address",
    "--memory-reservation": _MEMORY, "--memory-swap": _MEMORY, "--memory-swappiness": _MEMORY,
    "--net --network": f"{_BRIDGE}: publish its ports with -p", "--net-alias --network-alias": _BRIDGE,
    "--oom-kill-disable": "a full memory would stop the whole VM", "--oom-score-adj": "the OOM killer is the VM's own",
    "--pid": _OWN_KERNEL, "--pids-limit": "processes are bounded by the VM's memory",
    "--privileged": "rights in a container are Docker's usual ones but MKNOD, and it sees no device of the host",
    "--runtime": "there is one: QEMU", "--security-opt": "the border is the VM",
    "--storage-opt": "a writable layer is as large as the configuration says (default_disk_bytes), or by --size",
    "--sysctl": "what /proc/sys has cannot be changed from inside", "--ulimit": "set it in the image's own start",
    "--use-api-socket": "a micro-VM has no socket of the host",
    "--userns": _OWN_KERNEL, "--uts": _OWN_KERNEL,
    "--volume-driver": "volumes are local disks", "--volumes-from": "name its volumes with -v",
}  # fmt: skip

COMMANDS: Mapping[str, Mapping[str, str]] = {
    "run": CREATE,
    "create": {**CREATE, "-a --attach": "nothing is shown before the start: use hyper start -a"},
    "start": {
        "--checkpoint": _CHECKPOINT, "--checkpoint-dir": _CHECKPOINT,
    },
    "rm": {"-l --link": "there are no links"},
    "exec": {"--privileged": CREATE["--privileged"]},
    "logs": {"--details": "there is one log driver, which adds nothing"},
    "update": {
        **{key: CREATE[key] for key in (
            "--blkio-weight", "--cpu-period", "--cpu-quota", "--cpu-rt-period", "--cpu-rt-runtime", "-c --cpu-shares",
            "--cpuset-cpus", "--cpuset-mems", "--kernel-memory", "--memory-reservation", "--memory-swap",
            "--pids-limit",
        )},
    },
    "images": {"--tree": "there is linux/amd64 alone, so that there are no trees"},
    "pull": {"-a --all-tags": "name each tag", "--disable-content-trust": _TRUST},
    "push": {"-a --all-tags": "name each tag", "--disable-content-trust": _TRUST, "--platform": _PLATFORM},
    "save": {"--platform": _PLATFORM},
    "load": {"--platform": _PLATFORM},
    "rmi": {"--no-prune": "layers that nothing needs go with image prune -a, not before", "--platform": _PLATFORM},
    "history": {"--platform": _PLATFORM},
    "image history": {"--platform": _PLATFORM},
    "image inspect": {"--platform": _PLATFORM},
    "build": {
        "--add-host": _DNS, "--cache-from": _BUILDKIT, "--cgroup-parent": _BUILD_VM, "--compress": "it is local",
        "--cpu-period": _BUILD_VM, "--cpu-quota": _BUILD_VM, "-c --cpu-shares": _BUILD_VM,
        "--cpuset-cpus": _BUILD_VM, "--cpuset-mems": _BUILD_VM, "-m --memory": _BUILD_VM, "--memory-swap": _BUILD_VM,
        "--ulimit": _BUILD_VM, "--shm-size": _BUILD_VM, "--security-opt": _BUILD_VM, "--network": _BUILD_VM,
        "--disable-content-trust": _TRUST, "--isolation": _WINDOWS,
        "--rm": "what a step leaves is always removed", "--force-rm": "what a step leaves is always removed",
        "--pull": "get the newer base with hyper pull first", "--squash": "layers are kept",
        "--progress": "steps are lines", "--load": "the result is here anyway", "--push": "use hyper push",
        "-o --output": "the result is an image: use hyper save, or hyper cp",
        **dict.fromkeys((
            "--allow", "--annotation", "--attest", "--build-context", "--builder", "--cache-to", "--call", "--check",
            "--metadata-file", "--no-cache-filter", "--provenance", "--sbom", "--secret", "--ssh",
        ), _BUILDKIT),
    },
    "login": {"-p --password": "others could see it: use --password-stdin"},
    "search": {"-f --filter": "use --format with a condition, or grep"},
    "image prune": {"--filter": _FILTER},
    "container prune": {"--filter": _FILTER},
    "system prune": {"--filter": _FILTER},
    "volume prune": {"--filter": _FILTER},
    "volume create": {
        "-o --opt": "a volume is a disk: use --size",
        **dict.fromkeys((
            "--availability", "--group", "--limit-bytes", "--required-bytes", "--scope", "--secret", "--sharing",
            "--topology-preferred", "--topology-required", "--type",
        ), _CLUSTER),
    },
    "volume ls": {"--cluster": _CLUSTER},
}  # fmt: skip


_ONE_HOST = "one host, one container at a time: start each with hyper run"
_BUILDX = "images are built by buildah, without BuildKit: use hyper build"
_NOTHING = "there is nothing of the kind here"
NO_COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(("export", "container export"), "use hyper cp CONTAINER:/ -"),
    **dict.fromkeys(("import", "image import"), "use hyper build with FROM scratch and ADD"),
    "volume update": _CLUSTER,
    "network": "there is one network, and each container has one address in it: publish its ports with hyper run -p",
    **dict.fromkeys(("compose", "stack", "service", "swarm", "node", "config", "secret"), _ONE_HOST),
    **dict.fromkeys(("buildx", "builder"), _BUILDX),
    **dict.fromkeys(("checkpoint", "context", "manifest", "plugin", "trust"), _NOTHING),
}


def command(name: str) -> ClientError:
    """What to tell whoever typed a command that is not there; `name` as in `volume update`."""
    if name in NO_COMMANDS:
        return ClientError(f"{name} of docker is not offered: {NO_COMMANDS[name]}")
    group, _, action = name.partition(" ")
    return ClientError(f"there is no command {name!r}; see: hyper {f'{group} ' if action else ''}--help")


def spellings(options: Mapping[str, str]) -> dict[str, str]:
    """Reasons by each way to write an option."""
    return {name: reason for names, reason in options.items() for name in names.split()}


def check(command: str, given: Sequence[str], known: Collection[str]) -> None:
    """Refuse the first of the options given that is not known, if Docker has it.

    Args:
        command: As in `hyper image ls`.
        given: What followed it.
        known: The options that the command has.

    Raises:
        ClientError: it says why there is no such option.
    """
    name = _own_name(command, given)
    reasons = spellings(COMMANDS.get(name, {}))
    for option in _unknown(given, known):
        if option in reasons:
            raise ClientError(f"{option} of docker is not offered: {reasons[option]}")
        if name == command.removeprefix("hyper "):
            return  # else it may be known to the action, of which we were not told


def _own_name(command: str, given: Sequence[str]) -> str:
    """The key in `COMMANDS`: also of `hyper volume`, given `prune -f`, and of `hyper container run`."""
    name = command.removeprefix("hyper ")
    action = f"{name} {given[0]}" if given else name
    if name in COMMANDS or action in COMMANDS:
        return name if name in COMMANDS else action
    from runtime.cli.main import GROUPS

    group, _, action = name.partition(" ")
    return GROUPS.get(group, {}).get(action, name)


def _unknown(given: Sequence[str], known: Collection[str]) -> Iterator[str]:
    for word in given:
        if word == "--":
            return
        option = word.partition("=")[0]
        if word.startswith("--") and word not in known and option not in known:
            yield option
        elif word.startswith("-") and word != "-" and not word.startswith("--"):
            letter = word[:2]
            if letter not in known:
                yield letter
