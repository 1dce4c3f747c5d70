"""The lifecycle and listing commands of `hyper` as processes, against a server that answers by the API's reference."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.fake_hyperd import Daemon, Refusal, exited, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ID = "3f" * 32
CONTAINER: dict[str, Any] = {
    "id": ID, "name": "web", "image": "nginx", "image_digest": "sha256:" + "ab" * 32, "args": ["nginx"],
    "state": "running", "desired": "running", "status": "Up 3 minutes (healthy)", "health": "healthy",
    "created_at": time.time() - 3600, "labels": {"team": "shop"}, "exit_code": None, "retry_at": None,
    "network": {"address": "10.97.0.2", "ports": [
        {"host_ip": "0.0.0.0", "host_port": 8080, "container_port": 80, "protocol": "tcp"},
        {"host_ip": "127.0.0.1", "host_port": 5353, "container_port": 53, "protocol": "udp"},
    ]},
}  # fmt: skip
OTHER = {**CONTAINER, "id": "aa" * 32, "name": "job", "state": "exited", "exit_code": 3,
         "status": "Exited (3) 1 hour ago", "network": None, "health": "none", "labels": {}}  # fmt: skip
EVENT = {"seq": 7, "time_ns": 1_700_000_000_123_456_789, "type": "container", "action": "die", "id": ID,
         "attributes": {"name": "web", "image": "nginx", "exitCode": "3"}}  # fmt: skip


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "hyperd.sock") as daemon:
        yield daemon


@pytest.fixture
def hyper(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    environment = {
        **os.environ,
        "HYPER_STATE_DIR": str(tmp_path),
        "HYPER_CONFIG": "/none",
        "COLUMNS": "160",
        "TZ": "UTC",
    }

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runtime.cli.program", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)

    return run


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("run --restart sometimes x", "--restart 'sometimes': write no, on-failure, on-failure:5, always"),
        ("run --restart on-failure:x x", "--restart 'on-failure:x': the number of retries is not a whole number"),
        ("run --restart always:3 x", "--restart 'always:3': a number of retries goes with on-failure alone"),
        ("run --rm --restart always x", "--rm and --restart exclude each other"),
        ("run --privileged x", "--privileged of docker is not offered: rights in a container are"),
        ("run --mount type=bind,src=a,dst=/b x", "--mount 'type=bind,src=a,dst=/b': type=bind has a path of this host"),
        ("run --platform linux/arm64 x", "--platform 'linux/arm64': the micro-VMs here are linux/amd64"),
        ("rm -l x", "-l of docker is not offered: there are no links"),
        ("stop -s x!", "--signal 'x!': it is no signal"),
        ("run --size S9 x", "--size: invalid choice: 'S9'"),
        ("run --tmpfs run x", "--tmpfs 'run': the path is not absolute"),
        ("run --health-interval 30 x", "--health-interval '30': write a number with its unit, such as 30s"),
        ("run --health-timeout soon x", "--health-timeout 'soon': write a number with its unit"),
        ("run --health-start-period -1s x", "--health-start-period"),
        ("run --health-retries 0 x", "--health-retries '0': write a whole number above 0"),
        ("run --no-healthcheck --health-cmd true x", "--no-healthcheck and --health-… exclude each other"),
        ("run --stop-timeout -2 x", "--stop-timeout"),
        ("stop -t -2 x", "--timeout '-2': write a number of seconds"),
        ("logs --tail -2 x", "--tail '-2': write a number of lines, or all"),
        ("run --label-file /nowhere x", "--label-file '/nowhere': it cannot be read: No such file"),
        ("run --cidfile /nowhere/id x", "--cidfile /nowhere/id: it cannot be written: No such file"),
        ("run --cidfile /etc/passwd x", "--cidfile /etc/passwd: it is there already; remove it"),
        ("create --pull sometimes x", "--pull: invalid choice: 'sometimes'"),
        ("update x", "nothing to update: give --image, --memory, --cpus or --restart"),
        ("update --memory some x", "--memory 'some': write a number of bytes"),
        ("update --cpus -1 x", "--cpus"),
        ("update --restart never x", "--restart 'never': write no"),
        ("rename x", "NEW-NAME"),
        ("pause", "CONTAINER"),
        ("port x http", "the port 'http' is none: write 80 or 80/udp"),
        ("ps --filter colour=red", "--filter 'colour=red': there is no filter 'colour'; there are: ancestor"),
        ("ps --filter status=gone", "--filter status=gone: write one of created"),
        ("ps --format {{.Nmae}}", "--format: there is no field .Nmae; there are: .ID"),
        ("ps --format {{.ID", "--format: {{ is not closed"),
        ("ps -n 0", "--last '0': write a whole number above 0"),
        ("inspect --format table web", "--format: inspect has no table"),
        ("inspect --format {{.State.Nothing}} web", "--format: there is no field .Nothing; there are: .Status"),
        ("events --since yesterday", "--since 'yesterday': write seconds since 1970"),
        ("events --filter color=red", "--filter 'color=red': write KEY=VALUE with KEY one of container"),
        ("events --format {{nonsense}}", "--format: there is no function 'nonsense'"),
        ("start -a one two", "-a and -i take one container"),
        (f"run -m {'9' * 400} x", "write a number of bytes, or one with b, k, m or g behind it"),
        (f"logs --since {'9' * 400}h x", "or how long ago, such as 10m"),
        ("restart -t soon x", "--timeout 'soon': write a number of seconds"),
        ("wait", "CONTAINER"),
    ],
)  # fmt: skip
def test_wrong_values_are_one_line_with_the_remedy(hyper: Any, daemon: Daemon, args: str, message: str) -> None:
    daemon.answers["GET /v1/containers?all=false"] = [CONTAINER]
    daemon.answers["GET /v1/containers/web"] = CONTAINER
    daemon.answers["GET /v1/events"] = [json.dumps(EVENT).encode() + b"\n"]
    done = hyper(*args.split())
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("hyper: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not daemon.bodies("POST /v1/containers"), "nothing was created"


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["rm", "-f", ""], "CONTAINER"), (["rm", "-f", "web", ""], "CONTAINER"), (["container", "rm", ""], "CONTAINER"),
        (["stop", ""], "CONTAINER"), (["logs", ""], "CONTAINER"), (["exec", "", "ls"], "CONTAINER"),
        (["exec", "web", "", "x"], "COMMAND"), (["inspect", ""], "NAME"), (["volume", "rm", "-f", ""], "VOLUME"),
        (["volume", "inspect", "data", ""], "VOLUME"), (["snapshot", "rm", ""], "SNAPSHOT"), (["rmi", ""], "IMAGE"),
        (["run", "", "ls"], "IMAGE"), (["rename", "web", ""], "NEW-NAME"), (["cp", "", "web:/x"], "SOURCE"),
        (["save", "-o", "/nowhere/x", ""], "IMAGE"), (["stats", ""], "CONTAINER"), (["completion", ""], "shell"),
    ],
)  # fmt: skip
def test_an_empty_name_is_refused_before_anything_is_sent(
    hyper: Any, daemon: Daemon, args: list[str], what: str
) -> None:
    done = hyper(*args)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith(f"hyper: an empty {what} was given: name one; see: hyper ")
    assert done.stderr.count("\n") == 1
    assert not daemon.asked


def test_an_empty_user_or_check_is_the_images(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["POST /v1/containers"] = {"id": ID, "name": "web", "warnings": []}
    daemon.answers["POST /v1/containers/web/exec"] = {"session": "one"}
    daemon.answers["GET /v1/sessions/one/output"] = [exited(0)]
    assert hyper("create", "-u", "", "--health-cmd", "", "nginx").returncode == 0
    assert hyper("create", "--no-healthcheck", "--health-cmd=", "nginx").returncode == 0
    assert hyper("exec", "-u", "", "web", "id").returncode == 0
    assert [(body["user"], body["health"]) for body in daemon.bodies("POST /v1/containers")] == [
        (None, None),
        (None, {"test": ["NONE"]}),
    ]
    assert [body["user"] for body in daemon.bodies("POST /v1/containers/web/exec")] == [None]


def test_empty_words_of_a_program_are_its_own(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["POST /v1/containers"] = {"id": ID, "name": "web", "warnings": []}
    assert hyper("create", "-e", "A=", "--entrypoint", "", "nginx", "", "x").returncode == 0
    (body,) = daemon.bodies("POST /v1/containers")
    assert (body["args"], body["entrypoint"], body["env"]) == (["", "x"], [], ["A="])


def test_all_flags_of_run_reach_the_daemon(hyper: Any, daemon: Daemon, tmp_path: Path) -> None:
    labels, identity = tmp_path / "labels", tmp_path / "id"
    labels.write_text("a=1\n\n# no label\nb\n")
    daemon.answers["POST /v1/containers"] = {"id": ID, "name": "web", "warnings": []}
    done = hyper(
        "create", "--restart", "on-failure:5", "--size", "M1", "--read-only", "--tmpfs", "/run:size=1m",
        "--tmpfs", "/tmp",
        "--label-file", str(labels), "-l", "b=2", "--cidfile", str(identity), "--stop-timeout", "3", "--hostname", "h",
        "--mount", "type=volume,src=data,dst=/d,ro", "--mount", "type=tmpfs,dst=/t", "--shm-size", "1m", "-v", "/v",
        "--health-cmd", "true", "--health-interval", "1m30s", "--health-timeout", "500ms", "--health-retries", "2",
        "nginx",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{ID}\n")
    assert identity.read_text() == ID
    (body,) = daemon.bodies("POST /v1/containers")
    wanted = {
        "restart": {"policy": "on-failure", "max_retries": 5}, "size": "M1", "read_only": True, "stop_timeout_s": 3.0,
        "tmpfs": [
            {"path": "/run", "options": "size=1m"}, {"path": "/tmp", "options": ""}, {"path": "/t", "options": ""},
            {"path": "/dev/shm", "options": "mode=1777,size=1048576"},
        ],
        "volumes": [
            {"source": None, "target": "/v", "read_only": False, "nocopy": False},
            {"source": "data", "target": "/d", "read_only": True, "nocopy": False},
        ],
        "labels": {"a": "1", "b": "2"}, "hostname": "h",
        "health": {"test": ["CMD-SHELL", "true"], "interval_s": 90.0, "timeout_s": 0.5, "retries": 2},
    }  # fmt: skip
    assert {name: body[name] for name in wanted} == wanted
    daemon.answers["POST /v1/containers"] = Refusal(409, "name_in_use", "taken")
    assert hyper("create", "--cidfile", str(tmp_path / "none"), "nginx").returncode == 125
    assert not (tmp_path / "none").exists(), "no id, no file"


def test_ps_filters_and_templates(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["GET /v1/containers?all=true"] = [CONTAINER, OTHER]
    daemon.answers["GET /v1/containers?all=false"] = [CONTAINER]
    sized = [{**CONTAINER, "size_bytes": 1500, "size_root_bytes": 2_000_000}]
    daemon.answers["GET /v1/containers?all=false&size=true"] = sized
    assert hyper("ps", "--filter", "status=exited", "-q").stdout == "aa" * 6 + "\n"
    assert hyper("ps", "-q", "-f", "since=job").stdout == "", "what is compared with has ended"
    daemon.answers["GET /v1/containers?all=true"] = [CONTAINER, {**OTHER, "created_at": 1.0}]
    assert hyper("ps", "-f", "since=job", "-f", "name=^/web$", "--format", "{{.Names}}").stdout == "web\n"
    assert hyper("ps", "-q", "-f", "before=web").stdout == "", "it has ended, and -a is not given"
    assert hyper("ps", "-aq", "-f", "before=web").stdout == "aa" * 6 + "\n"
    assert "there is no container none" in hyper("ps", "-f", "before=none").stderr
    assert hyper("ps", "-l", "--format", "{{.Names}}").stdout == "web\n"
    assert hyper("ps", "--format", '{{.ID}} {{.State}} {{.Label "team"}} {{.Labels}}').stdout == (
        f"{ID[:12]} running shop team=shop\n"
    )
    assert "1.5kB (virtual 2MB)" in hyper("ps", "-s").stdout
    assert hyper("ps", "--format", "table {{.Names}}\t{{.Status}}").stdout.splitlines()[0].split() == [
        "NAMES",
        "STATUS",
    ]
    row = json.loads(hyper("ps", "--format", "{{json .}}").stdout)
    assert (row["ID"], row["Names"], row["Ports"]) == (
        ID[:12], "web", "0.0.0.0:8080->80/tcp, 127.0.0.1:5353->53/udp",
    )  # fmt: skip


def test_inspect_has_dockers_members(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["GET /v1/containers/web"] = CONTAINER
    daemon.answers["GET /v1/containers/job"] = OTHER

    def shown(form: str) -> str:
        return str(hyper("inspect", "-f", form, "web", "job").stdout)

    assert shown("{{.State.Status}} {{.State.Running}} {{.State.ExitCode}}") == "running true 0\nexited false 3\n"
    assert shown('{{.Name}} {{index .Config.Labels "team"}}') == "/web shop\n/job \n"
    assert shown("{{.Config.Labels.team}} {{.labels.no}}") == "shop <no value>\n<no value> <no value>\n"
    assert shown("{{range $p, $c := .NetworkSettings.Ports}}{{$p}}={{(index $c 0).HostPort}} {{end}}") == (
        "53/udp=5353 80/tcp=8080 \n\n"
    )
    assert (
        shown("{{if .State.Health}}{{.State.Health.Status}}{{end}}{{.exit_code}}").splitlines()[0]
        == "healthy<no value>"
    )


def test_inspect_has_dockers_members_of_what_the_image_says_too(hyper: Any, daemon: Daemon) -> None:
    config = {
        "Env": ["A=1", "PATH=/bin"], "Cmd": ["serve"], "Entrypoint": ["/start"], "User": "web", "WorkingDir": "/srv",
        "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT",
        "Healthcheck": {"Test": ["CMD", "true"]},
    }  # fmt: skip
    volumes = [
        {"source": "/srv/site", "target": "/site", "read_only": True}, {"source": "data", "target": "/data"},
        {"source": None, "target": "/own"},
    ]  # fmt: skip
    daemon.answers["GET /v1/containers/web"] = {
        **CONTAINER, "config": config, "spec": {"volumes": volumes}, "log_file": "/var/lib/hyper/container.log",
        "network": {"address": "10.97.0.2", "mac": "02:00:00:00:00:02", "gateway": "10.97.0.1", "prefix_length": 16},
    }  # fmt: skip
    daemon.answers["GET /v1/containers/job"] = OTHER
    address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    rows = {
        f"{address} {{{{.NetworkSettings.IPAddress}}}}": "10.97.0.2 10.97.0.2\n \n",
        "{{range $name, $one := .NetworkSettings.Networks}}{{$name}} {{$one.Gateway}}/{{$one.IPPrefixLen}}{{end}}": (
            "bridge 10.97.0.1/16\nbridge /0\n"
        ),
        '{{.HostConfig.NetworkMode}} {{join .HostConfig.Binds ","}}': (
            "bridge /srv/site:/site:ro,data:/data\nbridge \n"
        ),
        "{{json .Config.Env}} {{json .Config.Cmd}} {{json .Config.Entrypoint}}": (
            '["A=1","PATH=/bin"] ["serve"] ["/start"]\n[] null null\n'
        ),
        "{{.Config.User}} {{.Config.WorkingDir}} {{.Config.StopSignal}} {{json .Config.ExposedPorts}}": (
            'web /srv SIGQUIT {"80/tcp":{}}\n   {}\n'
        ),
        '{{with .Config.Healthcheck}}{{index .Test 0}}{{end}} {{index .Config.Labels "team"}}': ("CMD shop\n \n"),
        "{{.LogPath}}": "/var/lib/hyper/container.log\n\n",
    }
    for form, expected in rows.items():
        assert hyper("inspect", "-f", form, "web", "job").stdout == expected, form
    daemon.answers["GET /v1/images/nginx"] = {
        "digest": "sha256:" + "ab" * 32, "references": [], "created_at": 1.0, "config": {}, "layers": ["sha256:1"],
    }  # fmt: skip
    names = [f"docker.io/library/nginx@{CONTAINER['image_digest']}", "docker.io/library/nginx:1", "host:5000/x:2"]
    names.append(f"host:5000/x@{CONTAINER['image_digest']}")
    daemon.answers["GET /v1/images/named"] = {**daemon.answers["GET /v1/images/nginx"], "references": names}
    done = hyper("image", "inspect", "-f", "{{json .RepoTags}} {{json .RepoDigests}}", "nginx", "named")
    whole = [f"{name}@{CONTAINER['image_digest']}" for name in ("host:5000/x", "nginx")]
    assert [json.loads(f"[{line.replace(' ', ',')}]") for line in done.stdout.splitlines()] == [
        [[], []],
        [["nginx:1", "host:5000/x:2"], whole],
    ]
    form = "{{.RootFS.Type}} {{index .RootFS.Layers 0}}"
    assert hyper("image", "inspect", "-f", form, "nginx").stdout == "layers sha256:1\n"
    daemon.answers["GET /v1/info"] = {"cpus": 8, "memory_bytes": 1 << 33}
    assert hyper("info", "-f", "{{.NCPU}} {{.MemTotal}} {{.Driver}}").stdout == f"8 {1 << 33} erofs\n"


def test_port_and_top(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["GET /v1/containers/web"] = CONTAINER
    daemon.answers["GET /v1/containers/web/top"] = {
        "titles": ["UID", "PID", "CMD"],
        "processes": [["0", "12", "nginx"]],
    }
    daemon.answers["GET /v1/containers/web/top?option=-o&option=pid,comm"] = {"titles": ["PID"], "processes": [["1"]]}
    assert hyper("top", "web", "-o", "pid,comm").stdout == "PID\n1\n"
    assert hyper("port", "web").stdout == "80/tcp -> 0.0.0.0:8080\n53/udp -> 127.0.0.1:5353\n"
    assert hyper("port", "web", "53/udp").stdout == "127.0.0.1:5353\n"
    assert "publishes no port 81/tcp" in hyper("port", "web", "81").stderr
    assert json.loads(hyper("port", "--format", "json", "web").stdout) == CONTAINER["network"]["ports"]
    assert json.loads(hyper("port", "web", "53/udp", "--format=json").stdout) == CONTAINER["network"]["ports"][1:]
    assert [line.split() for line in hyper("top", "web").stdout.splitlines()] == [
        ["UID", "PID", "CMD"],
        ["0", "12", "nginx"],
    ]


def test_a_port_that_is_not_chosen_yet_is_not_shown(hyper: Any, daemon: Daemon) -> None:
    unchosen = {"host_ip": "127.0.0.1", "host_port": 0, "container_port": 80, "protocol": "tcp"}
    fixed = {**unchosen, "host_port": 8443, "container_port": 443}
    daemon.answers["GET /v1/containers?all=true"] = [{**OTHER, "spec": {"ports": [unchosen, fixed]}}]
    assert hyper("ps", "-a", "--format", "{{.Ports}}").stdout == "127.0.0.1:8443->443/tcp\n"


def test_what_takes_room_one_by_one(hyper: Any, daemon: Daemon) -> None:
    image = {"digest": "sha256:" + "ab" * 32, "references": ["nginx:1"], "created_at": None, "size_bytes": 10**6}
    volume = {"name": "data", "size_bytes": 1, "used_bytes": 1, "created_at": 1.0, "containers": [], "anonymous": False}
    found = {
        "images": [image], "containers": [{**CONTAINER, "size_bytes": 1000, "size_root_bytes": 2000}],
        "volumes": [volume], "snapshots": [{**volume, "name": "data-1", "volume": "data"}],
    }  # fmt: skip
    daemon.answers["GET /v1/images"] = found["images"]
    daemon.answers["GET /v1/containers?all=true&size=true"] = found["containers"]
    daemon.answers["GET /v1/volumes"] = found["volumes"]
    daemon.answers["GET /v1/snapshots"] = found["snapshots"]
    assert json.loads(hyper("system", "df", "-v", "--format", "json").stdout) == found
    parts = hyper("system", "df", "-v").stdout.split(" space usage:\n")
    assert [part.splitlines()[-1] for part in parts[:-1]] == ["Images", "Containers", "Local Volumes", "Snapshots"]
    for part, name in zip(parts[1:], ("nginx", "web", "data", "data-1"), strict=True):
        assert name in part
    assert "--verbose has no template" in hyper("system", "df", "-v", "--format", "{{.Type}}").stderr


def test_events(hyper: Any, daemon: Daemon) -> None:
    lines = [json.dumps(EVENT).encode() + b"\n", json.dumps({**EVENT, "action": "x\x1b[2J"}).encode() + b"\n"]
    # A line may come in pieces.
    daemon.answers["GET /v1/events"] = [lines[0][:20], lines[0][20:] + lines[1][:5], lines[1][5:]]
    first, second = hyper("events").stdout.splitlines()
    assert first == (f"2023-11-14T22:13:20.123456789+00:00 container die {ID} (exitCode=3, image=nginx, name=web)")
    assert "\x1b" not in second
    assert [json.loads(line)["seq"] for line in hyper("events", "--format", "json").stdout.splitlines()] == [7, 7]
    form = "{{.Status}} {{.Actor.Attributes.exitCode}} {{.Time}}"
    assert hyper("events", "--format", form).stdout.splitlines()[0] == "die 3 1700000000"
    query = "since=5.000000000&until=9.500000000"
    daemon.answers[f"GET /v1/events?event=die&event=oom&label=a=b&{query}"] = [lines[0]]
    filters = ("--filter", "event=die", "--filter", "event=oom", "--filter", "label=a=b")
    assert hyper("events", "--since", "5", "--until", "9.5", *filters).returncode == 0


def packed(*entries: tuple[str, str]) -> list[bytes]:
    """An archive: a name with `/` behind it is a directory, content that begins with `->` a link."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, text in entries:
            member = tarfile.TarInfo(name.rstrip("/"))
            member.mode = 0o755
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            elif text.startswith("->"):
                member.type, member.linkname = tarfile.SYMTYPE, text.removeprefix("->")
            else:
                member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return [content.getvalue()]


def test_a_directory_is_copied_to_a_name_that_is_not_there(hyper: Any, daemon: Daemon, tmp_path: Path) -> None:
    at = "GET /v1/containers/web/archive?path="
    daemon.answers[f"{at}/etc/nginx"] = packed(("nginx/", ""), ("nginx/conf", "on"))
    daemon.answers[f"{at}/etc/nginx/."] = packed(("./", ""), ("./conf", "on"))
    daemon.answers[f"{at}/etc/passwd"] = packed(("passwd", "root"))
    for number, source in enumerate(("web:/etc/nginx", "web:/etc/nginx/.", "web:/etc/nginx")):
        new = tmp_path / f"new{number}"
        assert hyper("cp", source, f"{new}{'/' if number < 2 else ''}").returncode == 0
        assert [(one.name, one.read_text()) for one in new.iterdir()] == [("conf", "on")], source
    assert hyper("cp", "web:/etc/nginx", f"{tmp_path}/new0/").returncode == 0
    assert (tmp_path / "new0/nginx/conf").read_text() == "on", "one that is there gets the directory itself"
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    for source, target in (("passwd", "none/"), ("nginx", "file/"), ("nginx", "link/"), ("nginx", "no/such/")):
        done = hyper("cp", f"web:/etc/{source}", f"{tmp_path}/{target}")
        assert done.returncode == 125
        assert done.stderr.startswith("hyper: there is no directory ")
    assert sorted(one.name for one in tmp_path.iterdir() if one.name != "hyperd.sock") == [
        "file", "link", "new0", "new1", "new2",
    ]  # fmt: skip


def test_links_of_a_container_are_followed_if_asked_for(hyper: Any, daemon: Daemon, tmp_path: Path) -> None:
    at = "GET /v1/containers/web/archive?path="
    daemon.answers[f"{at}/a/link"] = packed(("link", "->../b/next"))
    daemon.answers[f"{at}/a/../b/next"] = packed(("next", "->/etc/passwd"))
    daemon.answers[f"{at}/etc/passwd"] = packed(("passwd", "root"))
    daemon.answers[f"{at}/round"] = packed(("round", "->/round"))
    assert hyper("cp", "web:/a/link", str(tmp_path)).returncode == 0
    assert (tmp_path / "link").readlink().as_posix() == "../b/next"
    assert hyper("cp", "-L", "web:/a/link", str(tmp_path)).returncode == 0
    assert (tmp_path / "link").read_text() == "root"
    assert not (tmp_path / "link").is_symlink()
    assert hyper("cp", "-L", "web:/etc/passwd", f"{tmp_path}/own").returncode == 0
    assert (tmp_path / "own").read_text() == "root"
    assert "root" in hyper("cp", "-L", "web:/a/link", "-").stdout
    assert "the links at /round in web do not end" in hyper("cp", "-L", "web:/round", str(tmp_path)).stderr


def test_a_link_of_the_host_gives_its_name_to_what_it_leads_to(hyper: Any, daemon: Daemon, tmp_path: Path) -> None:
    at = "/v1/containers/web/archive?path="
    daemon.answers[f"GET {at}/srv/."] = packed(("./", ""))
    daemon.answers[f"PUT {at}/srv"] = None
    (tmp_path / "site").mkdir()
    (tmp_path / "site/page").write_text("hello")
    (tmp_path / "link").symlink_to("site")
    for source in ("link", "site/../link", "link/."):
        assert hyper("cp", "-L", f"{tmp_path}/{source}", "web:/srv").returncode == 0
    names = []
    for body in daemon.bodies(f"PUT {at}/srv"):
        with tarfile.open(fileobj=io.BytesIO(body)) as tar:
            names.append(tar.getnames())
    assert names == [["link", "link/page"], ["link", "link/page"], [".", "./page"]]


def test_each_named_container_is_told_of(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["POST /v1/containers/web/pause"] = None
    daemon.answers["POST /v1/containers/job/pause"] = Refusal(409, "conflict", "the container job is not running")
    done = hyper("pause", "job", "web")
    assert (done.returncode, done.stdout, done.stderr) == (125, "web\n", "hyper: the container job is not running\n")
    daemon.answers["POST /v1/containers/web/wait"] = {"exit_code": 4, "oom_killed": False, "error": None}
    done = hyper("wait", "nobody", "web")
    assert (done.returncode, done.stdout) == (125, "4\n")
    daemon.answers["POST /v1/containers/web/update"] = CONTAINER
    assert hyper("update", "--cpus", "1.5", "--restart", "no", "web").stdout == "web\n"
    assert daemon.bodies("POST /v1/containers/web/update") == [
        {"cpus": 1.5, "restart": {"policy": "no", "max_retries": 0}}
    ]
