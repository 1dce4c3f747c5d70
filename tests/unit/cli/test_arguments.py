from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runtime.cli import arguments, main, mounts, streams
from runtime.client import ClientError

if TYPE_CHECKING:
    from pathlib import Path


def port(host_ip: str, host_port: int, container_port: int, protocol: str) -> dict[str, Any]:
    return {"host_ip": host_ip, "host_port": host_port, "container_port": container_port, "protocol": protocol}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", port("0.0.0.0", 8080, 80, "tcp")),
        ("127.0.0.1:8080:80", port("127.0.0.1", 8080, 80, "tcp")),
        ("127.0.0.1::80", port("127.0.0.1", 0, 80, "tcp")),
        ("127.0.0.1:0:80", port("127.0.0.1", 0, 80, "tcp")),
        ("0:80", port("0.0.0.0", 0, 80, "tcp")),
        ("8080:80/TCP", port("0.0.0.0", 8080, 80, "tcp")),
        ("53/Udp", port("0.0.0.0", 0, 53, "udp")),
        ("80", port("0.0.0.0", 0, 80, "tcp")),
        ("8080:80/udp", port("0.0.0.0", 8080, 80, "udp")),
        ("53/udp", port("0.0.0.0", 0, 53, "udp")),
        ("65535:1", port("0.0.0.0", 65535, 1, "tcp")),
    ],
)
def test_port(text: str, expected: dict[str, Any]) -> None:
    assert arguments.ports(text) == [expected]


def test_a_range_of_ports_goes_by_pairs() -> None:
    assert arguments.ports("127.0.0.1:8000-8002:80-82/udp") == [
        port("127.0.0.1", 8000 + number, 80 + number, "udp") for number in range(3)
    ]
    assert arguments.ports("80-81") == [port("0.0.0.0", 0, 80, "tcp"), port("0.0.0.0", 0, 81, "tcp")]


def test_a_range_of_host_ports_for_one_port_leaves_the_choice_to_the_daemon() -> None:
    assert arguments.ports("8000-8005:80") == [{**port("0.0.0.0", 8000, 80, "tcp"), "host_port_last": 8005}]


@pytest.mark.parametrize(
    "text",
    ["", ":", "80:", "0", "65536", "x:80", "8080:x", "80/sctp", "80/", "1:2:3:4", "localhost:8080:80", "256.0.0.1:1:2",
     "[::1]:80:80", "81-80", "8000-8005:80-81", "8000:80-81", "80-", "-80",
     "8000-70000:80", "+80", "\u0661:80", "01.2.3.4:1:2", "0-5:80", "8080:0"],
)  # fmt: skip
def test_wrong_port(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        arguments.ports(text)


@pytest.mark.parametrize(
    ("text", "member", "entry"),
    [
        (
            "type=volume,source=data,target=/d,readonly", "volumes",
            {"source": "data", "target": "/d", "read_only": True, "nocopy": False},
        ),
        (
            "src=data,dst=/d,ro=false,volume-nocopy", "volumes",
            {"source": "data", "target": "/d", "read_only": False, "nocopy": True},
        ),
        (
            "type=bind,source=/a,target=/d,readonly", "volumes",
            {"source": "/a", "target": "/d", "read_only": True, "nocopy": False, "create": False},
        ),
        ("destination=/d", "volumes", {"source": None, "target": "/d", "read_only": False, "nocopy": False}),
        ("type=tmpfs,target=/run,tmpfs-size=1m,tmpfs-mode=755", "tmpfs",
         {"path": "/run", "options": "size=1m,mode=755"}),
        ("type=tmpfs,target=/run,readonly", "tmpfs", {"path": "/run", "options": "ro"}),
        ("type=tmpfs,target=/run,ro=true,tmpfs-size=1m", "tmpfs", {"path": "/run", "options": "ro,size=1m"}),
        ("type=tmpfs,target=/run,ro=false", "tmpfs", {"path": "/run", "options": ""}),
    ],
)  # fmt: skip
def test_mount(text: str, member: str, entry: dict[str, Any]) -> None:
    assert mounts.mount(text) == (member, entry)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=bind,source=a,target=/b", "type=bind has a path of this host"),
        ("type=bind,target=/b", "type=bind has a path of this host"),
        ("type=volume,source=/a,target=/b", "type=volume a name"),
        ("type=npipe,target=/b", "use volume, bind or tmpfs"),
        ("type=volume,source=a", "no absolute target"),
        ("target=b", "no absolute target"),
        ("target=/b,colour=red", "there is no 'colour'"),
        ("target=/b,readonly=maybe", "neither true nor false"),
        ("type=tmpfs,source=a,target=/b", "has no source"),
        ("type=tmpfs,target=/b,readonly=maybe", "neither true nor false"),
        ("type=tmpfs,target=/b,volume-nocopy", "volume-nocopy is for type=volume"),
        ("target=/b,tmpfs-size=1m", "tmpfs-size is for type=tmpfs"),
        ("type=volume,source=a,target=/b,tmpfs-size=1m", "tmpfs-size is for type=tmpfs"),
        ("type=bind,source=/a,target=/b,tmpfs-mode=755", "tmpfs-mode is for type=tmpfs"),
    ],
)
def test_wrong_mount(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mounts.mount(text)


def test_there_is_one_platform() -> None:
    assert arguments.platform("linux/amd64") == "linux/amd64"
    with pytest.raises(ValueError, match="linux/amd64"):
        arguments.platform("linux/arm64")


def test_a_switch_takes_no_word_that_is_not_its_own() -> None:
    parser = arguments.Parser(prog="x", description="")
    parser.add_switch("-p", "--pause", default=True, text="")
    parser.add_argument("word", nargs="?")
    assert vars(parser.parse_args(["--pause", "web"])) == {"pause": True, "word": "web"}
    assert vars(parser.parse_args(["--pause=false", "web"])) == {"pause": False, "word": "web"}
    assert vars(parser.parse_args(["-p"])) == {"pause": True, "word": None}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--rm=true", "-i=false", "x"], {"rm": True, "i": False, "pause": None, "words": ["x"]}),
        (["-i", "--rm=1", "--rm=F", "x"], {"rm": False, "i": True, "pause": None, "words": ["x"]}),
        (["--no-pause=false", "x"], {"rm": False, "i": False, "pause": True, "words": ["x"]}),
        (
            ["x", "--rm=true", "--rm=maybe"],
            {"rm": False, "i": False, "pause": None, "words": ["x", "--rm=true", "--rm=maybe"]},
        ),
    ],
)
def test_switches_take_true_and_false(words: list[str], expected: dict[str, Any]) -> None:
    parser = arguments.Parser(prog="x", description="")
    parser.add_argument("--rm", action="store_true")
    parser.add_argument("-i", action="store_true")
    parser.add_argument("--no-pause", dest="pause", action="store_false", default=None)
    parser.add_argument("words", nargs="...")
    assert vars(parser.parse_args(words)) == expected
    with pytest.raises(ClientError, match="--rm 'maybe': write true or false, or nothing"):
        parser.parse_args(["--rm=maybe", "x"])
    with pytest.raises(ClientError, match="-i 'rm': write true or false"):
        parser.parse_args(["-i=rm", "x"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("exec web grep -- -v file", ("web", "grep", ["--", "-v", "file"])),
        ("exec -- web ls -- -l", ("web", "ls", ["--", "-l"])),
        ("container exec -e A=1 web ls -l --", ("web", "ls", ["-l", "--"])),
        ("run -- nginx ls", ("nginx", ["ls"])),
        ("run -- nginx ls -- x", ("nginx", ["ls", "--", "x"])),
        ("create --name x nginx -- -x", ("nginx", ["--", "-x"])),
        ("run nginx -x -- -- y", ("nginx", ["-x", "--", "--", "y"])),
        ("top web -- -ef", ("web", ["--", "-ef"])),
        ("rm a -- -x", (["a", "-x"],)),
        ("rm -f -- -x -y", (["-x", "-y"],)),
        ("cp -- -a web:/x", ("-a", "web:/x")),
        ("volume rm -- -x", (["-x"],)),
    ],
)
def test_two_dashes_end_our_options_and_are_otherwise_the_programs(line: str, expected: tuple[Any, ...]) -> None:
    name, *words = line.split()
    if name == "container":
        name, *words = f"{name} {words[0]}", *words[1:]
    found = vars(main.command(name)[1].parse_args(words))
    positionals = ("image", "ref", "refs", "command", "args", "options", "source", "target", "names")
    assert tuple(found[one] for one in positionals if one in found) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("commit web -m msg img", {"ref": "web", "message": "msg", "name": "img"}),
        ("rm web -f db", {"refs": ["web", "db"], "force": True}),
        ("rm web -fv db", {"refs": ["web", "db"], "force": True, "volumes": True}),
        ("rm web --force=true db", {"refs": ["web", "db"], "force": True}),
        ("rm web -f -- -x", {"refs": ["web", "-x"], "force": True}),
        ("stop web -t 5 db", {"refs": ["web", "db"], "time": 5.0}),
        ("stop web -t5 db", {"refs": ["web", "db"], "time": 5.0}),
        ("stop web -t -1 db", {"refs": ["web", "db"], "time": 86400.0}),
        ("stop web --timeout=5 db -s INT x", {"refs": ["web", "db", "x"], "time": 5.0, "signal": "INT"}),
        ("container kill web -s TERM db", {"refs": ["web", "db"], "signal": "TERM"}),
        ("rmi a -f b", {"refs": ["a", "b"], "force": True}),
        ("inspect a -f {{.Id}} b", {"refs": ["a", "b"], "format": "{{.Id}}"}),
        ("inspect a -sf {{.Id}} b", {"refs": ["a", "b"], "size": True, "format": "{{.Id}}"}),
        ("save a -o f b", {"references": ["a", "b"], "output": "f"}),
        ("update web --cpus 1 db", {"refs": ["web", "db"], "cpus": 1.0}),
        ("port web --format json 80", {"ref": "web", "format": "json", "port": "80"}),
        ("volume rm a -f b", {"names": ["a", "b"], "force": True}),
        ("snapshot inspect a --format {{.Name}} b", {"names": ["a", "b"], "format": "{{.Name}}"}),
        ("top web -f -o pid", {"ref": "web", "options": ["-f", "-o", "pid"]}),
        ("exec web ls -t", {"ref": "web", "command": "ls", "args": ["-t"], "tty": False}),
    ],
)
def test_options_may_stand_between_names(line: str, expected: dict[str, Any]) -> None:
    name, *words = line.split()
    if name == "container":
        name, *words = f"{name} {words[0]}", *words[1:]
    found = vars(main.command(name)[1].parse_args(words))
    assert {one: found[one] for one in expected} == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("save a b -o", "argument -o/--output: expected one argument"),
        ("kill web -s", "argument -s/--signal: expected one argument"),
        ("commit web -m -a", "argument -m/--message: expected one argument"),
        ("rm a --colour b", "unrecognized arguments: --colour b"),
        ("rm a -l b", "-l of docker is not offered"),
        ("ps a -q b", "unrecognized arguments: a b"),
    ],
)
def test_no_name_becomes_a_value_and_what_is_not_ours_is_told(line: str, message: str) -> None:
    name, *words = line.split()
    with pytest.raises(ClientError, match=message):
        main.command(name)[1].parse_args(words)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1k", 1024),
        ("256m", 256 << 20),
        ("1.5G", 3 << 29),
        ("2GiB", 2 << 30),
        ("3mb", 3 << 20),
        ("5b", 5),
    ],
)
def test_size(text: str, size_bytes: int) -> None:
    assert arguments.size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "-1", "m", "1x", "1 2", "1e3", "nan", "0x10", "9" * 400, f"{'9' * 400}g"])
def test_wrong_size(text: str) -> None:
    with pytest.raises(ValueError, match="256m"):
        arguments.size(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", ""])
def test_wrong_cpus(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as 1\.5"):
        arguments.cpus(text)


def test_an_empty_user_is_none() -> None:
    assert arguments.user("") is None
    assert arguments.user("1:1") == "1:1"


def test_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "here")
    monkeypatch.delenv("ABSENT", raising=False)
    file = tmp_path / "env"
    file.write_text("\ufeffA=1\n# comment\n\n  B=two = 2 \nOURS\nABSENT\nEMPTY=\r\n")
    assert arguments.variables(str(file)) == ["A=1", "B=two = 2 ", "OURS=here", "EMPTY="]
    file.write_text("A=1\nno name=2\n")
    with pytest.raises(ValueError, match="line 2: 'no name' is not a name"):
        arguments.variables(str(file))
    file.write_bytes(b"A=\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        arguments.variables(str(file))


def test_a_name_that_we_have_no_value_of_stays_one_unless_it_is_a_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "here")
    monkeypatch.delenv("ABSENT", raising=False)
    file = tmp_path / "env"
    file.write_text("ABSENT\nA=1\nB=1\n")
    parser = arguments.Parser(prog="hyper run", description="")
    streams.add_environment(parser)
    given = parser.parse_args(["-e", "OURS", "-e", "ABSENT", "-e", "B", "--env-file", str(file)])
    given.tty = False
    assert streams.environment(given) == ["A=1", "B", "OURS=here", "ABSENT"]


@pytest.mark.parametrize(
    ("text", "name"), [("TERM", "TERM"), ("sigint", "INT"), ("9", "9"), ("64", "64"), ("RTMIN+1", "RTMIN+1")]
)
def test_signal(text: str, name: str) -> None:
    assert arguments.signal_name(text) == name


@pytest.mark.parametrize("text", ["", "0", "65", "-9", "A B", "SIG"])
def test_wrong_signal(text: str) -> None:
    with pytest.raises(ValueError, match="no signal"):
        arguments.signal_name(text)
