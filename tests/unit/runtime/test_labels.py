"""Whose labels a container has."""

from __future__ import annotations

from runtime import labels


def test_a_container_has_its_images_labels_and_its_own_go_before_them() -> None:
    image = {"maintainer": "shop", "team": "theirs", "hyper.metrics": "9100", "hyper.probe.interval": "5s"}
    assert labels.of_container(image, {"team": "ours"}) == {**image, "team": "ours"}


def test_an_image_does_not_say_what_may_be_done_to_its_containers() -> None:
    image = {"hyper.remediation": "full", "hyper.remediation.follow": "true", "hyper.other": "x", "hyperion": "kept"}
    assert labels.of_container(image, {}) == {"hyperion": "kept"}
    assert labels.of_container(image, {"hyper.remediation": "off"})["hyper.remediation"] == "off"


def test_what_an_image_could_do_harm_with_is_left_out() -> None:
    image = {"\ud800": "x", "half": "\udfff", "big": "x" * 60_000, "bigger": "x" * 60_000}
    assert set(labels.of_container(image, {})) == {"big"}
