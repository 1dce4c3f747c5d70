"""What the index of images remembers, and that a write makes it forget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runtime.images import index
from runtime.images.image import Image, ImageConfig
from runtime.images.index import ImageIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ONE, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
WEB = "docker.io/library/web:1"


def image(digest: str, file: Path) -> Image:
    return Image(digest, (), None, 0.0, 1, file, ImageConfig())


@pytest.fixture
def images(tmp_path: Path) -> Iterator[ImageIndex]:
    found = ImageIndex(tmp_path / "hyper.db", tmp_path / "images")
    found.put(image(ONE, found.file(ONE)), {})
    yield found
    found.close()


def test_what_was_found_is_remembered(images: ImageIndex) -> None:
    assert images.remembered(ONE) is None, "nobody has asked yet"
    found = images.by_digest(ONE)
    assert images.remembered(ONE) == found
    assert images.by_reference(WEB) is None
    assert images.remembered(WEB) == (), "that there is none as well"


@pytest.mark.parametrize(
    "write",
    [
        lambda images: images.tag(WEB, ONE),
        lambda images: images.untag(WEB),
        lambda images: images.doom(ONE),
        lambda images: images.put(image(OTHER, images.file(OTHER)), {}),
        lambda images: images.remove(ONE),
    ],
)
def test_a_write_makes_it_forget(images: ImageIndex, write: Callable[[ImageIndex], None]) -> None:
    images.by_digest(ONE)
    images.by_reference(WEB)
    write(images)
    assert images.remembered(ONE) is None
    assert images.remembered(WEB) is None


def test_what_a_write_changed_is_found(images: ImageIndex) -> None:
    assert images.by_reference(WEB) is None
    images.tag(WEB, ONE)
    named = images.by_reference(WEB)
    assert named is not None
    assert named.references == (WEB,)
    images.untag(WEB)
    assert images.by_digest(ONE)[0].references == ()


def test_whether_any_is_doomed(images: ImageIndex) -> None:
    assert images.has_doomed(), "it may be: nobody has looked"
    assert images.doomed() == ()
    assert not images.has_doomed()
    images.doom(ONE)
    assert images.has_doomed()
    assert images.doomed() == (ONE,)


def test_memory_is_bounded(images: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MOST_REMEMBERED", 2)
    for number in range(5):
        images.by_digest(f"sha256:{number}")
    assert sum(images.remembered(f"sha256:{number}") is not None for number in range(5)) <= 2
    assert images.remembered("sha256:4") == ()
