from __future__ import annotations

import pytest

from runtime.errors import InvalidInput
from runtime.images import reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.25", "docker.io/library/nginx:1.25"),
        ("grafana/grafana", "docker.io/grafana/grafana:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
        ("ghcr.io/a/b/c:x", "ghcr.io/a/b/c:x"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x:1", "localhost:5000/x:1"),
        ("host:5000/name", "host:5000/name:latest"),
        ("127.0.0.1:5000/n/m:t", "127.0.0.1:5000/n/m:t"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("MyHost/x", "MyHost/x:latest"),
        (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
        (f"nginx:1@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
        ("a__b--c/e_f.d", "docker.io/a__b--c/e_f.d:latest"),
        ("x:UPPER_.-1", "docker.io/library/x:UPPER_.-1"),
    ],
)
def test_canonical(text: str, canonical: str) -> None:
    parsed = reference.parse(text)
    assert str(parsed) == canonical
    assert reference.parse(canonical) == parsed


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it is empty"),
        (" nginx", "blanks"),
        ("nginx ", "blanks"),
        ("NGINX", "capital letters"),
        ("host:5000/NAME", "capital letters"),
        ("http://host/x", "leave out http://"),
        ("docker://nginx", "leave out docker://"),
        ("nginx:", "the tag '' is not"),
        ("nginx:-x", "the tag '-x' is not"),
        ("nginx:" + "a" * 129, "1 to 128"),
        ("nginx@sha256:abc", "64 hexadecimal digits"),
        ("nginx@md5:" + "a" * 32, "64 hexadecimal digits"),
        (f"nginx@{DIGEST.upper()}", "lower case"),
        ("a//b", "is empty"),
        ("a/", "is empty"),
        ("/a", "is empty"),
        ("a.b/", "is empty"),
        ("a_", "'a_' is not lower-case"),
        ("a..b", "'a..b' is not lower-case"),
        ("-a", "'-a' is not lower-case"),
        ("--option", "'--option' is not lower-case"),
        ("a b", "'a b' is not lower-case"),
        ("h\u00e9/x", "is not lower-case"),
        ("host:0/x", "between 1 and 65535"),
        ("host:70000/x", "between 1 and 65535"),
        ("host:a/x", "is not host or host:port"),
        ("-host.x/x", "is not host or host:port"),
        ("a" * 256, "longer than 255"),
        ("x/" * 600, "longer than 1024"),
        ("nginx\n", "blanks"),
        ("ng\ninx", "is not lower-case"),
        ("x:\u0661", "the tag"),
    ],
)
def test_wrong(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match="is not an image reference") as caught:
        reference.parse(text)
    assert complaint in caught.value.message
    assert caught.value.field == "image"
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("localhost/x", True),
        ("localhost:5000/x", True),
        ("127.3.2.1:5000/x", True),
        ("[::1]:5000/x", True),
        ("nginx", False),
        ("10.0.0.1:5000/x", False),
        ("localhost.example.com/x", False),
        ("127.0.0.1.example.com/x", False),
    ],
)
def test_loopback(text: str, loopback: bool) -> None:
    assert reference.parse(text).is_loopback is loopback


@pytest.mark.parametrize(
    ("text", "name"),
    [("nginx", "nginx"), ("a/b", "a/b"), ("host:1/a", "host:1/a"), ("localhost/library/x", "localhost/library/x")],
)
def test_familiar_name(text: str, name: str) -> None:
    assert reference.parse(text).familiar_name == name
