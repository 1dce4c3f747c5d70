"""Containers, images, volumes, host and versions with the members that Docker gives them, for templates of `--format`.

Our own members stay beside them: Docker's begin with a capital, ours do not.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

NEVER = "0001-01-01T00:00:00Z"
NETWORK = "bridge"  # all containers are in the one there is
_NANO = 10**9


def shown(one: Mapping[str, Any]) -> dict[str, Any]:
    """A container, image or volume as a template sees it."""
    if "state" in one:
        return {**one, **_container(one)}
    return {**one, **(_image(one) if "digest" in one else volume(one))}


def volume(one: Mapping[str, Any]) -> dict[str, Any]:
    """A volume."""
    return {
        "Name": one["name"],
        "Driver": "local",
        "Scope": "local",
        "Mountpoint": one.get("file", ""),
        "Labels": one.get("labels") or {},
        "CreatedAt": _time(one.get("created_at")),
    }


def versions(answer: Mapping[str, Any]) -> dict[str, Any]:
    """`version`."""
    side = {"APIVersion": str(answer.get("api", "")), "Os": "linux", "Arch": "amd64"}
    server = {"Version": answer.get("version", ""), **side, "KernelVersion": str(answer.get("kernel", ""))}
    return {**answer, "Client": {"Version": answer["client"], **side}, "Server": server}


def host(answer: Mapping[str, Any]) -> dict[str, Any]:
    """`info`."""
    return {
        **answer,
        "ServerVersion": answer.get("version", ""),
        "Containers": answer.get("containers", 0),
        "ContainersRunning": answer.get("running", 0),
        "ContainersPaused": answer.get("paused", 0),
        "ContainersStopped": answer.get("stopped", 0),
        "Images": answer.get("images", 0),
        "OSType": "linux",
        "Architecture": "x86_64",
        "DockerRootDir": answer.get("data_dir", ""),
        "NCPU": answer.get("cpus", 0),
        "MemTotal": answer.get("memory_bytes", 0),
        "Driver": "erofs",
    }


def _time(seconds: float | None) -> str:
    if seconds is None:
        return NEVER
    whole, fraction = divmod(int(seconds * _NANO), _NANO)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{fraction:09d}Z"


def _container(one: Mapping[str, Any]) -> dict[str, Any]:
    spec, limits, network = one.get("spec") or {}, one.get("limits") or {}, one.get("network") or {}
    restart, config = one.get("restart") or {}, one.get("config") or {}
    words = one.get("args") or [""]
    return {
        "Id": one["id"],
        "Name": f"/{one['name']}",
        "Created": _time(one.get("created_at")),
        "Path": words[0],
        "Args": words[1:],
        "Image": one.get("image_digest"),
        "RestartCount": one.get("retries", 0),
        "State": _state(one),
        "Config": {
            "Image": one.get("image"),
            "Hostname": spec.get("hostname") or one["id"][:12],
            "Env": config.get("Env") or [],
            "Cmd": config.get("Cmd") or None,
            "Entrypoint": config.get("Entrypoint") or None,
            "User": config.get("User") or "",
            "WorkingDir": config.get("WorkingDir") or "",
            "ExposedPorts": config.get("ExposedPorts") or {},
            "Healthcheck": config.get("Healthcheck"),
            "Tty": spec.get("tty", False),
            "OpenStdin": spec.get("stdin", False),
            "Labels": one.get("labels") or {},
            "StopSignal": config.get("StopSignal") or "",
            "StopTimeout": spec.get("stop_timeout_s"),
        },
        "HostConfig": {
            "Memory": limits.get("memory_bytes", 0),
            "NanoCpus": int((limits.get("cpu_quota") or 0) * _NANO),
            "AutoRemove": one.get("auto_remove", False),
            "Init": spec.get("init", False),
            "ReadonlyRootfs": spec.get("read_only", False),
            "Tmpfs": {mount["path"]: mount["options"] for mount in spec.get("tmpfs") or ()},
            "RestartPolicy": {
                "Name": restart.get("policy", "no"),
                "MaximumRetryCount": restart.get("max_retries", 0),
            },
            "PortBindings": _bindings(spec.get("ports") or ()),
            "NetworkMode": NETWORK,
            "Binds": [_bind(mount) for mount in spec.get("volumes") or () if mount.get("source")],
        },
        "NetworkSettings": {
            **_endpoint(network),
            "Ports": _bindings(network.get("ports") or ()),
            "Networks": {NETWORK: _endpoint(network)},
        },
        "LogPath": one.get("log_file", ""),
        "Mounts": [_mount(mount) for mount in spec.get("volumes") or ()],
        **({"SizeRw": one["size_bytes"], "SizeRootFs": one["size_root_bytes"]} if "size_bytes" in one else {}),
    }


def _state(one: Mapping[str, Any]) -> dict[str, Any]:
    restarting = one.get("retry_at") is not None
    state = "restarting" if restarting else str(one["state"])
    vm = one.get("vm") or {}
    found: dict[str, Any] = {
        "Status": {"starting": "running", "stopping": "running"}.get(state, state),
        "Running": state in {"running", "paused", "stopping", "restarting"},
        "Paused": state == "paused",
        "Restarting": restarting,
        "OOMKilled": one.get("oom_killed", False),
        "Dead": state == "dead",
        "Pid": vm.get("pid", 0),
        "ExitCode": one.get("exit_code") or 0,
        "Error": one.get("error") or "",
        "StartedAt": _time(one.get("started_at")),
        "FinishedAt": _time(one.get("finished_at")),
        "Health": None,
    }
    if one.get("health", "none") != "none":
        found["Health"] = {
            "Status": one["health"],
            "FailingStreak": one.get("failing_streak", 0),
            "Log": [
                {
                    "Start": _time(check["began"]),
                    "End": _time(check["ended"]),
                    "ExitCode": check["exit_code"],
                    "Output": check["output"],
                }
                for check in one.get("checks") or ()
            ],
        }
    return found


def _endpoint(network: Mapping[str, Any]) -> dict[str, Any]:
    """A container's place in the one network; empty while it has none."""
    return {
        "IPAddress": network.get("address", ""),
        "IPPrefixLen": network.get("prefix_length", 0),
        "Gateway": network.get("gateway", ""),
        "MacAddress": network.get("mac", ""),
    }


def _bind(mount: Mapping[str, Any]) -> str:
    """As `-v` takes it."""
    return f"{mount['source']}:{mount['target']}{':ro' if mount.get('read_only') else ''}"


def _mount(mount: Mapping[str, Any]) -> dict[str, Any]:
    source = mount.get("source") or ""
    of_host = source.startswith("/")
    return {
        "Type": "bind" if of_host else "volume",
        **({} if of_host else {"Name": source}),
        "Source": source,
        "Destination": mount.get("target", ""),
        "Mode": "ro" if mount.get("read_only") else "",
        "RW": not mount.get("read_only"),
        "Propagation": "rprivate" if of_host else "",
    }


def _bindings(published: Any) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for port in published:
        name = f"{port['container_port']}/{port['protocol']}"
        found.setdefault(name, []).append({"HostIp": port["host_ip"], "HostPort": str(port["host_port"])})
    return found


def _image(one: Mapping[str, Any]) -> dict[str, Any]:
    from runtime.cli import imagelist  # here: containers need none of it

    references = one.get("references") or []
    names = [(*imagelist.split(name), name.partition("@")[2] or one.get("digest")) for name in references]
    return {
        "Id": one.get("digest"),
        "RepoTags": [f"{name}:{tag}" for name, tag, _ in names if tag != "<none>"],
        "RepoDigests": sorted({f"{name}@{digest}" for name, _, digest in names}),
        "Created": _time(one.get("created_at")),
        "Size": one.get("size_bytes", 0),
        "Os": "linux",
        "Architecture": "amd64",
        "Config": one.get("config") or {},
        "RootFS": {"Type": "layers", "Layers": one.get("layers") or []},
    }
