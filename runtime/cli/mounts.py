"""`-v`, `--mount` and `--tmpfs` as Docker takes them: what of a specification each of them is."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def tmpfs(text: str) -> dict[str, str]:
    """A file system in memory: `PATH` or `PATH:OPTIONS`.

    Raises:
        ValueError: the path is not absolute. The daemon knows the options.
    """
    path, _, options = text.partition(":")
    if not path.startswith("/"):
        raise ValueError("the path is not absolute; write /run:size=64m")
    return {"path": path, "options": options}


def volume(text: str) -> dict[str, Any]:
    """A volume: `/path`, `name:/path`, `name:/path:ro`; or a host directory: `/host/path:/path`, `./here:/path`.

    Raises:
        ValueError: what part is wrong.
    """
    parts = text.split(":")
    if len(parts) == 1:
        parts.insert(0, "")
    elif parts[0].startswith("/") and not parts[1].startswith("/"):
        parts.insert(0, "")  # no name, but options
    if len(parts) > 3 or not parts[1].startswith("/"):
        raise ValueError("write [NAME:]PATH[:ro] or HOST-PATH:PATH[:ro], such as data:/var/lib/data or ./site:/srv")
    options = parts[2].split(",") if len(parts) == 3 else []
    unknown = [option for option in options if option not in ("ro", "rw", "nocopy")]
    if unknown:
        raise ValueError(f"there is no option {unknown[0]!r}; use ro, rw or nocopy")
    return {
        "source": _host_path(parts[0]) or None,
        "target": parts[1],
        "read_only": "ro" in options,
        "nocopy": "nocopy" in options,
    }


def _host_path(source: str) -> str:
    """A path of ours as the daemon takes it; anything else as it is."""
    if source.startswith("~"):  # a shell leaves it in front of :/path
        return os.path.expanduser(source)  # noqa: PTH111 -- pathlib would slow every start
    return os.path.abspath(source) if source.startswith(".") else source  # noqa: PTH100 -- as above


def mount(text: str) -> tuple[str, dict[str, Any]]:
    """`--mount`: what member of a specification it is for, and the entry; `type=volume`, `type=bind` and `type=tmpfs`.

    Raises:
        ValueError: what part is wrong.
    """
    given = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        name = _MOUNT_NAMES.get(name, name)
        if name not in ("type", "source", "target", "read_only", "nocopy", "tmpfs-size", "tmpfs-mode"):
            raise ValueError(f"there is no {name!r}; use type, source, target, readonly, volume-nocopy, tmpfs-size")
        given[name] = value if equals else "true"
    kind, target = given.get("type", "volume"), given.get("target", "")
    if kind not in ("volume", "bind", "tmpfs"):
        raise ValueError(f"there is no type {kind!r}; use volume, bind or tmpfs")
    if not target.startswith("/"):
        raise ValueError("it has no absolute target; write type=volume,source=data,target=/data")
    if kind == "tmpfs":
        sizes = {"size": given.get("tmpfs-size"), "mode": given.get("tmpfs-mode")}
        if "source" in given:
            raise ValueError("a tmpfs has no source; leave it out")
        if "nocopy" in given:
            raise ValueError("volume-nocopy is for type=volume; leave it out")
        options = ["ro"] if _yes(given.get("read_only")) else []
        options += [f"{key}={one}" for key, one in sizes.items() if one]
        return "tmpfs", {"path": target, "options": ",".join(options)}
    for name in ("tmpfs-size", "tmpfs-mode"):
        if name in given:
            raise ValueError(f"{name} is for type=tmpfs; leave it out")
    source = _host_path(given.get("source", ""))
    if source.startswith("/") != (kind == "bind"):
        raise ValueError("type=bind has a path of this host as its source, type=volume a name or none")
    return "volumes", {
        "source": source or None,
        "target": target,
        "read_only": _yes(given.get("read_only")),
        "nocopy": _yes(given.get("nocopy")),
        **({"create": False} if kind == "bind" else {}),  # as in Docker, unlike -v
    }


_MOUNT_NAMES = {
    "src": "source", "dst": "target", "destination": "target", "readonly": "read_only", "ro": "read_only",
    "volume-nocopy": "nocopy",
}  # fmt: skip


def _yes(text: str | None) -> bool:
    if text not in (None, "true", "1", "false", "0"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text in ("true", "1")
