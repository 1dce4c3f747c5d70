"""What is wrong with a request, in the words of whoever typed it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pydantic
import pytest

from runtime import spec
from runtime.api import changes, containers, images, invalid, streams, volumes
from runtime.errors import CommandNotFound, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTAINERS = "/v1/containers"


def refusal(model: type[pydantic.BaseModel], given: Any, path: str = CONTAINERS) -> InvalidInput:
    with pytest.raises(pydantic.ValidationError) as caught:
        model.model_validate(given)
    errors = [{**one, "loc": ("body", *one["loc"])} for one in caught.value.errors()]
    return invalid.fault(errors, path)


@pytest.mark.parametrize(
    ("given", "message", "field"),
    [
        ({"memory_bytes": 4096}, "--memory 4k: write 16m at least", "memory_bytes"),
        ({"memory_bytes": 1 << 50}, "--memory 1024t: write 1t at most", "memory_bytes"),
        ({"cpus": 99.5}, "--cpus 99.5: write 16 at most", "cpus"),
        ({"cpus": 0}, "--cpus 0: write more than 0", "cpus"),
        ({"cpus": "many"}, "--cpus: write a number", "cpus"),
        ({"name": "a b"}, "--name 'a b': begin with a letter or a digit, and go on with those, '_'", "name"),
        (
            {"hostname": "a_b"},
            "--hostname 'a_b': begin with a letter or a digit, and go on with those, '.'",
            "hostname",
        ),
        ({"health": {"interval_s": 0}}, "--health-interval 0s: write 1ms at least", "health.interval_s"),
        ({"health": {"retries": 0}}, "--health-retries 0: write 1 at least", "health.retries"),
        ({"stop_timeout_s": 1e6}, "--stop-timeout 1000000: write 86400 at most", "stop_timeout_s"),
        ({"user": "u" * 300}, "--user: write 256 characters at most", "user"),
        ({"size": "XL"}, "--size 'XL': write 'S1', 'S2'", "size"),
        ({"restart": {"policy": "x"}}, "--restart 'x': write 'no', 'on-failure'", "restart.policy"),
        ({"ports": [{"container_port": 0}]}, "--publish 0: write 1 at least", "ports.0.container_port"),
        ({"env": ["=A"]}, "--env: '=A' is neither NAME=VALUE nor a NAME to take away", "env"),
        ({"image": ""}, "the image: it is empty", "image"),
        ({"colour": 1}, "colour: there is no such member", "colour"),
        ({"project": "/"}, "project '/': begin with", "project"),
        ({"labels": []}, "--label: write an object", "labels"),
        ({"labels": {"a": "\udcff"}}, "--label: it has bytes that are not UTF-8", "labels.a"),
        ({"labels": {"\udcff": "a"}}, "--label: it has bytes that are not UTF-8", "labels.\ufffd\ufffd\ufffd"),
        ({"tty": "perhaps"}, "tty: write true or false", "tty"),
    ],
)
def test_a_container_that_cannot_be(given: dict[str, Any], message: str, field: str) -> None:
    found = refusal(spec.Spec, {"image": "x", **given})
    assert str(found).startswith(message)
    assert (found.field, found.status) == (field, 400)


def test_one_member_has_its_word_in_each_call() -> None:
    assert str(refusal(volumes.VolumeBody, {"name": "a b"}, "/v1/volumes")).startswith("the name 'a b': begin")
    assert str(refusal(volumes.VolumeBody, {"size_bytes": 1}, "/v1/volumes")).startswith("--size 1: write ")
    assert str(refusal(images.BuildBody, {"target": "a b"}, "/v1/images/build")).startswith("--target 'a b': begin")
    assert str(refusal(images.TagBody, {"source": "a"}, "/v1/images/tag")) == "the new name: it is missing"
    assert str(refusal(changes.ChangeBody, {"image": "a", "canary_s": 1e9}, "/v1/x")) == (
        "--canary 1000000000s: write 86400s at most"
    )
    assert str(refusal(spec.Spec, [])) == "the request: write an object"


def models() -> Iterator[type[pydantic.BaseModel]]:
    for module in (spec, changes, containers, images, streams, volumes):
        for one in vars(module).values():
            if isinstance(one, type) and issubclass(one, pydantic.BaseModel) and one.model_fields:
                yield one


def patterns(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        for part in schema.values():
            yield from patterns(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from patterns(part)


def without_a_bound(schema: Any, where: str) -> Iterator[str]:
    """Where a text or a name may hold half a character: pydantic looks into those alone that have a bound."""
    if isinstance(schema, dict):
        of_any_name = schema.get("additionalProperties") and "propertyNames" not in schema
        of_any_text = schema.get("type") == "string" and not {"maxLength", "pattern", "enum", "const"} & schema.keys()
        if of_any_name or of_any_text:
            yield where
        for name, part in schema.items():
            yield from without_a_bound(part, name)
    elif isinstance(schema, list):
        for part in schema:
            yield from without_a_bound(part, where)


def test_no_text_of_a_request_is_without_a_bound() -> None:
    found = {where for model in models() for where in without_a_bound(model.model_json_schema(), model.__name__)}
    assert found == {"host_ip"}, "which is an address"


def test_every_pattern_has_its_words() -> None:
    found = {pattern for model in models() for pattern in patterns(model.model_json_schema())}
    assert found == set(invalid.RULES)


def test_a_user_that_is_not_there_is_no_program_that_is_not_there() -> None:
    assert invalid.unknown_user(CommandNotFound("exec nosuch: not found")) is None
    for what in ("user", "group"):
        found = invalid.unknown_user(CommandNotFound(f"unable to find {what} me: no matching entries"))
        assert found is not None
        assert (str(found), found.code) == (f"--user: unable to find {what} me: no matching entries", "invalid_input")


def test_a_directory_to_start_in_begins_at_the_root() -> None:
    invalid.check_directory(None)
    invalid.check_directory("/srv")
    with pytest.raises(InvalidInput, match="--workdir 'srv': write a path from the root"):
        invalid.check_directory("srv")
