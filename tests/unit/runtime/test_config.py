"""Configuration that is wrong is refused with the member's name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from runtime.config import Config


@pytest.mark.parametrize("subnet", ["10.97.0.0/16", "192.168.7.0/29"])
def test_a_subnet(subnet: str) -> None:
    assert Config(subnet=subnet).subnet == subnet


@pytest.mark.parametrize("subnet", ["", "guests", "10.97.0.1/16", "10.97.0.0/33", "10.97.0.0/30", "fd00::/64"])
def test_what_is_no_subnet(subnet: str) -> None:
    with pytest.raises(ValidationError, match="subnet"):
        Config(subnet=subnet)
