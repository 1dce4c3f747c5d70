"""Configuration that is wrong is refused with the member's name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from runtime.config import Config, info_label


@pytest.mark.parametrize("subnet", ["10.97.0.0/16", "192.168.7.0/29"])
def test_a_subnet(subnet: str) -> None:
    assert Config(subnet=subnet).subnet == subnet


@pytest.mark.parametrize("subnet", ["", "guests", "10.97.0.1/16", "10.97.0.0/33", "10.97.0.0/30", "fd00::/64"])
def test_what_is_no_subnet(subnet: str) -> None:
    with pytest.raises(ValidationError, match="subnet"):
        Config(subnet=subnet)


def test_labels_to_show_are_few_and_told_apart() -> None:
    assert Config().info_labels == []
    assert Config(info_labels=["team", "com.example/tier"]).info_labels == ["team", "com.example/tier"]
    assert info_label("com.example/tier") == "container_label_com_example_tier"


@pytest.mark.parametrize(
    "names", [["a.b", "a-b"], ["team", "team"], [""], ["n" * 101], [f"l{number}" for number in range(17)]]
)
def test_labels_that_cannot_be_shown_are_refused(names: list[str]) -> None:
    with pytest.raises(ValidationError, match="info_labels"):
        Config(info_labels=names)
