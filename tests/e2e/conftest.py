"""Real images in a real registry, and a host that runs them as real micro-VMs; shared, as a boot costs seconds."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.host import KERNELS, Host, running_host
from tests.images.build import build
from tests.images.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = "test_storm.py"
PROGRAMS = ("qemu-system-x86_64", "skopeo", "umoci", "mkfs.erofs", "docker-registry", "nft", "ip", "promtool")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/e2e/" in str(item.path):
            item.add_marker(pytest.mark.e2e)
    items.sort(key=lambda item: item.path.name != LONGEST)  # of a process that is its own


@dataclass(frozen=True, slots=True)
class Images:
    """References of the images in the registry, and the digest of nginx."""

    registry: Registry
    busybox: str
    nginx: str
    nginx_digest: str


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid() != 0 or not list(KERNELS.glob("*/vmlinuz")):
        pytest.fail(
            f"the suite needs root, a guest kernel in {KERNELS}, and {missing or 'nothing else'}: run 'make setup'"
        )
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        registry.push(build("busybox"), "busybox")
        digest = registry.push(build("nginx"), "nginx")
        yield Images(registry, f"{registry.address}/busybox", f"{registry.address}/nginx", digest)


@pytest.fixture(scope="session")
def host(images: Images) -> Iterator[Host]:
    """A host with the images pulled and its template ready; what a test makes on it, the test removes."""
    with running_host(images.busybox, images.nginx, known_good_after_s=0.5) as one:
        one.start_exporter()
        yield one


@pytest.fixture(autouse=True)
def _nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove the containers of a test from the shared host; a test that fails shows the daemon's log."""
    yield
    if "host" in request.fixturenames:
        shared: Host = request.getfixturevalue("host")
        names = shared.hyper("ps", "-a", "-q", "--no-trunc").stdout.split()
        if names:
            shared.hyper("rm", "-f", *names)
