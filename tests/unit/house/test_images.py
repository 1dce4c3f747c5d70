"""The recipes of the test images, without making one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.images import build as builder
from tests.images.recipes import PASSWD, RECIPES

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", RECIPES)
def test_an_image_has_a_program_and_a_known_user(name: str) -> None:
    recipe = RECIPES[name]
    assert [*recipe.entrypoint, *recipe.command] != []
    users = {line.split(":")[0] for line in PASSWD.splitlines()}
    assert recipe.user in {"", *users}
    assert all(path.startswith("/") for path in (*recipe.files, *recipe.links, *recipe.directories))


def test_the_key_changes_with_the_recipe() -> None:
    keys = {builder.content_key(name, recipe) for name, recipe in RECIPES.items()}
    assert len(keys) == len(RECIPES)
    recipe = RECIPES["nginx"]
    assert builder.content_key("nginx", recipe) == builder.content_key("nginx", recipe)


def test_a_failing_program_shows_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "CACHE", tmp_path)
    program = tmp_path / "mmdebstrap"
    program.write_text("#!/bin/sh\necho no mirror today >&2\nexit 25\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(builder.BuildError, match="mmdebstrap failed with exit code 25:\nno mirror today"):
        builder.build("busybox")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
