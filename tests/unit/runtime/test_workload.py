"""What a guest is asked to run, by the container's specification and its image."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from runtime import workload
from runtime.images.image import ImageConfig
from runtime.record import Guest
from runtime.spec import Spec

if TYPE_CHECKING:
    from runtime.images.image import Image
    from runtime.life import Container, Lives


def image(**config: object) -> Image:
    return cast("Image", SimpleNamespace(config=ImageConfig(**config), file="image"))  # type: ignore[arg-type]  # a test


@pytest.mark.parametrize(("given", "user"), [(None, "nobody"), ("", "nobody"), ("0", "0"), ("web:web", "web:web")])
def test_the_user_is_the_images_unless_one_is_named(
    running: tuple[Container, Lives], given: str | None, user: str
) -> None:
    one, _ = running
    one.record = replace(one.record, guest=Guest(writable_device=None))
    one.spec = Spec(image="x", user=given)
    assert workload.process(one, image(user="nobody", cmd=("true",)))["user"] == user


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (["LANG"], {"PATH": "/own", "HOSTNAME": "web"}),
        (["LANG", "LANG=C"], {"PATH": "/own", "HOSTNAME": "web", "LANG": "C"}),
        (["NONE", "PATH", "LANG="], {"HOSTNAME": "web", "LANG": ""}),
    ],
)
def test_a_name_alone_takes_the_images_variable_away(
    running: tuple[Container, Lives], given: list[str], left: dict[str, str]
) -> None:
    one, _ = running
    one.spec = Spec(image="x", env=tuple(given))
    made_of = image(env=("PATH=/own", "LANG=de"), cmd=("true",))
    assert dict(entry.split("=", 1) for entry in workload.environment(one.spec, made_of, "web")) == left
    assert workload.root(one, made_of).path.endswith("/bin" if "PATH" in given else "/own")
