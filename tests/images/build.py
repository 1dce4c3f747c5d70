"""Make an image of Debian packages: `python tests/images/build.py nginx --out DIR`.

mmdebstrap extracts the packages with the host's own apt sources, keys and proxy (no maintainer script runs and nothing
is mounted, so it works in a plain chroot too); umoci puts the layer and the configuration into an OCI layout with the
tag `latest`. The same packages give the same bytes, but for what a recipe's own script makes. Results stay in a cache,
keyed by everything that shaped them.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in {None, ""}:  # run as a file
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.images.recipes import GROUP, PASSWD, RECIPES, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE = Path(os.environ.get("HYPER_IMAGE_CACHE", "/var/cache/hyper-images"))
TAG = "latest"
EPOCH_S = 1_700_000_000  # times in the images: no file is younger, so the same packages give the same layer
STEP_TIMEOUT_S = 600.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PLAIN_DIRECTORIES = ("dev", "etc", "home", "mnt", "proc", "root", "run", "srv", "sys", "tmp", "var/log", "var/tmp")

# What an image does without: the layer shrinks to about a third. Copyright files stay.
UNWANTED = (
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/vim",
    "usr/share/bash-completion",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/share/bug",
    "dev",
    "etc/apt",
    "etc/hostname",
    "etc/resolv.conf",
    "var/cache",
    "var/lib/apt",
    "var/lib/dpkg",
)

# Debian's packages expect the merged /usr; $1 is the root.
MERGED_USR = 'for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d" && ln -s "usr/$d" "$1/$d"; done'


class BuildError(Exception):
    """A program that makes the image failed; the message has the end of what it said."""


def build(name: str, out: Path | None = None) -> Path:
    """The OCI layout of the image `name`, made if it is not in the cache; copied to `out`/`name` if `out` is given.

    Raises:
        KeyError: there is no such recipe.
        BuildError: mmdebstrap or umoci failed.
    """
    recipe = RECIPES[name]
    layout = CACHE / f"{name}-{content_key(name, recipe)}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / f"{name}.lock"):
        if not layout.exists():
            with tempfile.TemporaryDirectory(prefix="hyper-image-", dir=CACHE) as scratch:
                made = _make(recipe, Path(scratch))
                for stale in CACHE.glob(f"{name}-*"):
                    shutil.rmtree(stale, ignore_errors=True)
                made.rename(layout)
    if out is None:
        return layout
    target = out / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(layout, target)
    return target


def content_key(name: str, recipe: Recipe) -> str:
    """Changes with the recipe, this program, the apt sources, and the versions that apt would take."""
    digest = hashlib.sha256(repr((name, recipe, PASSWD, GROUP, UNWANTED, EPOCH_S)).encode())
    digest.update(Path(__file__).read_bytes())
    for source in _sources():
        digest.update(source.read_bytes())
    packages = ("busybox-static", *recipe.packages)
    policy = subprocess.run(["apt-cache", "show", "--no-all-versions", *packages], capture_output=True, check=False)
    digest.update(policy.stdout)
    return digest.hexdigest()[:16]


def _make(recipe: Recipe, scratch: Path) -> Path:
    options = scratch / "apt.conf"
    options.write_text(_apt_options())
    root, layer, layout = scratch / "root", scratch / "layer.tar", scratch / "layout"
    _run(
        "mmdebstrap",
        "--mode=root",
        "--variant=extract",
        f"--aptopt={options}",
        f"--include={','.join(('busybox-static', *recipe.packages))}",
        f"--setup-hook={MERGED_USR}",
        _codename(),
        str(root),
        *(str(source) for source in _sources()),
    )
    _trim(root, recipe)
    _link_applets(root)
    _write_files(recipe, root)
    if recipe.prepare:
        _prepare(recipe, root)
    mtime = (f"--mtime=@{EPOCH_S}", "--clamp-mtime")
    _run("tar", "--sort=name", "--numeric-owner", *mtime, "-C", str(root), "-cf", str(layer), ".")
    image = f"{layout}:{TAG}"
    made_at = "2023-11-14T22:13:20Z"  # EPOCH_S
    _run("umoci", "init", "--layout", str(layout))
    _run("umoci", "new", "--image", image)
    _run("umoci", "raw", "add-layer", "--image", image, "--history.created", made_at, str(layer))
    _run("umoci", "config", "--image", image, "--created", made_at, "--no-history", *_config_options(recipe))
    _run("umoci", "gc", "--layout", str(layout))
    return layout


def _config_options(recipe: Recipe) -> Iterator[str]:
    for key, value in {"PATH": PATH, **recipe.environment}.items():
        yield f"--config.env={key}={value}"
    yield from (f"--config.entrypoint={word}" for word in recipe.entrypoint)
    yield from (f"--config.cmd={word}" for word in recipe.command)
    yield from (f"--config.exposedports={port}" for port in recipe.ports)
    yield f"--config.workingdir={recipe.working_dir}"
    yield f"--config.stopsignal={recipe.stop_signal}"
    if recipe.user:
        yield f"--config.user={recipe.user}"


def _trim(root: Path, recipe: Recipe) -> None:
    own = [found for pattern in recipe.unwanted for found in root.glob(pattern)]
    for target in [*(root / path for path in UNWANTED), *own]:
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    for directory, names, files in os.walk(root / "usr/share/doc", topdown=False):
        for name in (*names, *files):
            entry = Path(directory, name)
            if entry.is_symlink() or (entry.is_file() and name != "copyright"):
                entry.unlink()
        if not any(Path(directory).iterdir()):
            Path(directory).rmdir()


def _link_applets(root: Path) -> None:
    """Give the image every tool of busybox that no package brought."""
    busybox = root / "usr/bin/busybox"
    names = subprocess.run([busybox, "--list"], capture_output=True, check=True, text=True).stdout.split()
    for name in names:
        if not any(os.path.lexists(root / place / name) for place in ("usr/bin", "usr/sbin")):
            (root / "usr/bin" / name).symlink_to("busybox")


def _write_files(recipe: Recipe, root: Path) -> None:
    root.chmod(0o755)
    for name in PLAIN_DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    (root / "root").chmod(0o700)
    for path, owner in recipe.directories.items():
        directory = root / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        user, group = owner.split(":")
        os.chown(directory, int(user), int(group))
    for path, text in {"/etc/passwd": PASSWD, "/etc/group": GROUP, **recipe.files}.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o644)
    for path, target in recipe.links.items():
        link = root / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def _prepare(recipe: Recipe, root: Path) -> None:
    """Run the recipe's script in the root, with the little of /dev that programs expect."""
    _, _, uid, gid, *_ = next(line for line in PASSWD.splitlines() if line.startswith(f"{recipe.user}:")).split(":")
    device, shared = root / "dev/null", root / "dev/shm"
    try:
        os.mknod(device, stat.S_IFCHR, os.makedev(1, 3))
        device.chmod(0o666)
        shared.mkdir()
        shared.chmod(0o1777)
        _run("chroot", f"--userspec={uid}:{gid}", str(root), "/bin/sh", "-c", recipe.prepare)
    finally:
        device.unlink(missing_ok=True)
        shutil.rmtree(shared, ignore_errors=True)


def _sources() -> list[Path]:
    """The apt sources of this host."""
    parts = Path("/etc/apt/sources.list.d")
    found = [Path("/etc/apt/sources.list"), *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))]
    return [source for source in found if source.is_file() and source.stat().st_size > 0]


def _codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise BuildError("/etc/os-release has no VERSION_CODENAME: which Debian is this?")


def _apt_options() -> str:
    """How this host's apt reaches its mirror: proxies, certificates, retries, validity checks."""
    dump = subprocess.run(
        ["apt-config", "dump", "--no-empty", "--format", '%F "%v";%n', "Acquire"],
        capture_output=True,
        check=True,
        text=True,
    )
    wanted = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")
    return "".join(f"{line}\n" for line in dump.stdout.splitlines() if line.startswith(wanted))


def _run(*argv: str) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH_S), "LC_ALL": "C.UTF-8"}
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True, env=environment, timeout=STEP_TIMEOUT_S)
    except FileNotFoundError as err:
        raise BuildError(f"{argv[0]} was not found: run `make setup`") from err
    except subprocess.TimeoutExpired as err:
        raise BuildError(f"{argv[0]} did not end within {STEP_TIMEOUT_S:.0f} s") from err
    except subprocess.CalledProcessError as err:
        tail = "\n".join(f"{err.stdout}{err.stderr}".strip().splitlines()[-15:])
        raise BuildError(f"{argv[0]} failed with exit code {err.returncode}:\n{tail}") from err


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two test runs, or a test and the demo, do not make the same image at once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make images of Debian packages as OCI layouts.")
    parser.add_argument("name", nargs="+", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, help=f"copy the layouts to this directory; they stay in {CACHE} as well")
    arguments = parser.parse_args()
    try:
        for name in arguments.name:
            print(f"{build(name, arguments.out)}:{TAG}")
    except BuildError as err:
        print(f"build.py: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
