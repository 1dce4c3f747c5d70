"""Everyday command lines of `docker`, with `hyper` in its place, on real images as real micro-VMs.

A line is run by a shell whose `docker` is `hyper`. Each scenario is one test, and its lines go on from one another.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.host import Host, free_port, running_host, wait_for
from tests.images.build import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.e2e.conftest import Images

ID = r"[0-9a-f]{64}\n"
SHORT = r"[0-9a-f]{12}\n"
IMAGES = ("busybox", "nginx", "redis", "postgres", "python")
LINE_TIMEOUT_S = 60.0

pytestmark = pytest.mark.timeout(300)  # the images may have to be made first


class Line(NamedTuple):
    """A command line, its exit code, and what stdout is: a pattern for the whole of it. `err`: for a part of stderr.

    With `within_s` it is repeated until all of that holds, for what takes its time to come up.
    """

    line: str
    out: str = ""
    code: int = 0
    err: str = ""
    within_s: float = 0.0


SCENARIOS: Mapping[str, list[Line]] = {
    "nginx": [
        Line("docker run -d --name web -p 127.0.0.1:@port@:80 -l team=shop nginx", ID),
        Line("curl -s http://127.0.0.1:@port@/", r".*<h1>Hello from a micro-VM</h1>.*", within_s=30),
        Line(
            "docker ps",
            r"CONTAINER ID +IMAGE +COMMAND +CREATED +STATUS +PORTS +NAMES\n"
            r"[0-9a-f]{12} +nginx +\"nginx.*\" +.+ ago +Up .+ +127\.0\.0\.1:@port@->80/tcp +web\n",
        ),
        Line(
            "docker ps --format '{{.Names}} {{.Image}} {{.Ports}}'",
            r"web nginx 127\.0\.0\.1:@port@->80/tcp\n",
        ),
        Line("docker ps --format 'table {{.ID}}\\t{{.Names}}'", r"CONTAINER ID +NAMES\n[0-9a-f]{12} +web\n"),
        Line("docker ps -q --filter label=team=shop --filter status=running", SHORT),
        Line("docker ps -q --filter 'name=^/web$'", SHORT),
        Line("docker ps --format '{{printf \"%-6s|\" .Names}}'", r"web   \|\n"),
        Line("docker port web 80", r"127\.0\.0\.1:@port@\n"),
        Line("docker port web", r"80/tcp -> 127\.0\.0\.1:@port@\n"),
        Line("docker exec web nginx -v", err="nginx version: nginx/1"),
        Line("docker exec -w /usr/share/nginx/html web ls", r"index\.html\n"),
        Line("echo changed | docker exec -i web tee /usr/share/nginx/html/index.html", "changed\n"),
        Line("curl -s http://127.0.0.1:@port@/", "changed\n"),
        Line("docker cp web:/usr/share/nginx/html/index.html @tmp@/page && cat @tmp@/page", "changed\n"),
        Line("echo copied > @tmp@/page; docker cp @tmp@/page web:/usr/share/nginx/html/index.html"),
        Line("curl -s http://127.0.0.1:@port@/", "copied\n"),
        Line("docker exec web grep -c -- -v /etc/passwd", "0\n", code=1),
        Line("docker exec web ln -s html/index.html /usr/share/nginx/link"),
        Line("docker cp -L web:/usr/share/nginx/link @tmp@ && cat @tmp@/link", "copied\n"),
        Line("docker cp web:/usr/share/nginx/html @tmp@/new/ && cat @tmp@/new/index.html", "copied\n"),
        Line("docker diff web", r".*C /usr/share/nginx/html/index\.html\n.*"),
        Line("docker logs web", r".*\"GET / HTTP/1\.1\" 200 .*"),
        Line("docker logs --tail 1 web 2>&1 | wc -l", r"1\n"),
        Line("docker top web", r"UID +PID +PPID +C +STIME +TTY +TIME +CMD\n0 .+nginx: master process.*"),
        Line("docker top web aux", r"USER +PID +%CPU +%MEM +VSZ +RSS +TTY +STAT +START +TIME +COMMAND\n.+nginx: .*"),
        Line("docker top web -o pid,comm", r"PID +COMMAND\n(\d+ +nginx\n){2,}"),
        Line("docker top web --sort=rss", code=125, err="cannot be had here"),
        Line(
            "docker inspect -f '{{.State.Status}} {{.State.Running}} {{.Config.Image}}' web",
            "running true nginx\n",
        ),
        Line("docker inspect -f '{{json .Config.Labels}}' web", r'\{"team":"shop"\}\n'),
        Line(
            "docker inspect -f '{{json .Config.Entrypoint}} {{.HostConfig.NetworkMode}} {{.LogPath}}' web",
            r'\["nginx"\] bridge /.+\n',
        ),
        Line("docker image inspect -f '{{len .RootFS.Layers}}' nginx", r"[1-9]\n"),
        Line("docker stop web", "web\n"),
        Line("docker ps -a --filter name=web --format '{{.Status}}'", r"Exited \(0\) .+ ago\n"),
        Line("docker start web", "web\n"),
        Line("docker restart -t 5 web", "web\n"),
        Line("docker stop -s KILL web", "web\n"),
        Line("docker wait web", "137\n"),
        Line("docker run --rm --init busybox sh -c 'echo $$ $(cat /proc/1/comm); exit 7'", r"[2-9] init\n", code=7),
        Line("echo hi | docker run --rm -i --init busybox cat", "hi\n"),
        Line("docker run --rm -t --init busybox sh -c 'tty; kill -TERM $$'", r"/dev/pts/0\r\n", code=143),
        Line("docker rm web", "web\n"),
        Line("docker rm web", code=125, err="no container 'web'"),
        Line("docker rm -f web", err="no container 'web'"),
    ],
    "ranges of ports": [
        Line("docker run -d --name pairs -p 127.0.0.1:@range@-@range_end@:80-81 busybox httpd -f -p 81", ID),
        Line("docker port pairs", r"80/tcp -> 127\.0\.0\.1:@range@\n81/tcp -> 127\.0\.0\.1:@range_end@\n"),
        Line("docker run -d --name next -p 127.0.0.1:@range@-@range_last@:80 busybox sleep 600", ID),
        Line("docker port next 80/tcp", r"127\.0\.0\.1:@range_last@\n"),
        Line("docker create -p 127.0.0.1:@range@-@range_last@:80 busybox", code=125, err="already in use on this host"),
        Line("docker rm -f pairs next", "pairs\nnext\n"),
    ],
    "redis": [
        Line("docker run -d --name cache --restart unless-stopped redis", ID),
        Line("docker exec cache redis-cli ping", "PONG\n", within_s=30),
        Line("docker exec cache redis-cli set greeting hello", "OK\n"),
        Line("printf 'get greeting\\nincr visits\\n' | docker exec -i cache redis-cli", "hello\n1\n"),
        Line("docker exec cache id -un", "redis\n"),
        Line("docker exec -u 0 cache id -u", "0\n"),
        Line("docker logs cache 2>&1 | grep -c 'Ready to accept'", "1\n"),
        Line(
            "docker run --rm --entrypoint redis-cli redis"
            " -h $(docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' cache) get greeting",
            "hello\n",
        ),
        Line("docker pause cache && docker ps --format '{{.Status}}' -f name=cache", r"cache\nUp .+ \(Paused\)\n"),
        Line("docker unpause cache", "cache\n"),
        Line("docker stats --no-stream", r"CONTAINER ID +NAME +CPU % +MEM USAGE / LIMIT +MEM % +.+ cache .+"),
        Line("docker stats --no-stream --format '{{.Name}} {{.PIDs}}' cache", r"cache \d+\n", within_s=10),
        Line("docker kill -s TERM cache", "cache\n"),
        Line("docker update --restart no cache", "cache\n"),
        Line("docker rename cache old && docker rm -f old", "old\n"),
    ],
    "postgres": [
        Line("docker run -d --name db -m 256m -v data:/var/lib/postgresql -p 127.0.0.1:@port@:5432 postgres", ID),
        Line("docker exec db pg_isready -q -h 127.0.0.1", within_s=90),
        Line("docker exec db psql -Atc 'select 1'", "1\n"),
        Line("docker exec db psql -Atc 'show server_version'", r"15\.\d+.*\n"),
        Line("echo 'create table t (n int); insert into t values (41), (1);' | docker exec -i db psql -q"),
        Line("docker exec -it db psql -Atc 'select 1'", code=125, err="needs a terminal"),
        Line("docker exec db psql -Atc 'select nonsense'", code=1, err='column "nonsense" does not exist'),
        Line("docker exec db id -un", "postgres\n"),
        Line("docker stop db && docker inspect -f '{{.State.ExitCode}}' db", "db\n0\n"),
        Line("docker rm -v db", "db\n"),
        Line("docker run -d --name db -m 256m -v data:/var/lib/postgresql postgres -c max_connections=20", ID),
        Line("docker exec db psql -Atc 'select sum(n) from t'", "42\n", within_s=60),
        Line(
            "docker exec -e PGOPTIONS='-c work_mem=5MB' db psql -Atc 'show work_mem; show max_connections'", "5MB\n20\n"
        ),
        Line("docker volume ls -q -f dangling=true"),
        Line("docker rm -f db && docker volume rm data", "db\ndata\n"),
    ],
    "python": [
        Line("docker run --rm python python3 -c 'print(6 * 7)'", "42\n"),
        Line("echo 'print(sum(range(10)))' | docker run -i --rm python python3 -", "45\n"),
        Line(
            "docker container run --rm -h box -w /tmp -u 33:33 -e NAME=x --entrypoint python3 python -c"
            " 'import os; print(os.uname().nodename, os.getcwd(), os.getuid(), os.environ[\"NAME\"])'",
            "box /tmp 33 x\n",
        ),
        Line("docker run --rm python python3 -c 'import sys; print(1); sys.exit(\"no\")'", "1\n", code=1, err="^no\n$"),
        Line("docker run --rm python python3 -c 'raise SystemExit(3)'", code=3),
        Line("docker run -d --name py python sleep 600", ID),
        Line("docker exec py python3 -V", r"Python 3\.\d+\.\d+\n"),
        Line("docker exec -e N=20 -w /tmp py python3 -c 'import os; print(2 ** int(os.environ[\"N\"]))'", "1048576\n"),
        Line("docker exec -t py python3 -c 'import os; print(os.isatty(1))'", "True\r\n"),
        Line("docker exec py python3 -c '1 / 0'", code=1, err="ZeroDivisionError"),
        Line('docker exec -d py python3 -c \'open("/done", "w").write("yes")\''),
        Line("docker exec py cat /done", "yes", within_s=20),
    ],
    "exit codes": [
        Line("docker run --rm busybox nosuch", code=127, err="not found"),
        Line("docker run --rm busybox /etc/passwd", code=126, err="(?i)permission"),
        Line("docker run --rm busybox false", code=1),
        Line("docker run --rm -u nosuch busybox true", code=125, err="--user: unable to find user nosuch"),
        Line("docker run --rm -u 0:nosuch busybox true", code=125, err="--user: unable to find group nosuch"),
        Line("docker run --rm --init=false -w relative busybox", code=125, err="--workdir 'relative': write a path"),
        Line("docker run -m 4k --rm busybox", code=125, err="--memory 4k: write 16m at least"),
        Line("docker logout 127.0.0.1:1", "Not logged in to 127\\.0\\.0\\.1:1\n"),
        Line("docker run --bogus busybox", code=125, err="unrecognized arguments: --bogus"),
        Line("docker run --rm --pull never nosuch:1", code=125, err="there is no image"),
        Line("docker run --network host busybox", code=125, err="--network of docker is not offered: .+ -p"),
        Line("docker run -v /:/host:ro busybox", code=125, err="the daemon's own"),
        Line("docker nonsense", code=125, err="there is no command 'nonsense'"),
        Line("docker run -d --name shot busybox sleep 600", ID),
        Line("docker kill shot", "shot\n"),
        Line("docker wait shot", "137\n"),
        Line("docker start -a shot & sleep 2; docker stop -t 1 shot; wait $!", r"shot\n", code=137),
        Line("docker run -d --name polite busybox sh -c 'trap \"exit 143\" TERM; while :; do sleep 0.1; done'", ID),
        Line("docker exec polite true && docker stop polite && docker wait polite", "polite\n143\n"),
        Line("docker run -d --name late busybox sh -c 'until [ -e /go ]; do sleep 0.1; done; echo late; exit 4'", ID),
        Line("(sleep 2; docker exec late touch /go) & docker start -a late", "late\n", code=4),
        Line("docker rm shot -f polite late", "shot\npolite\nlate\n"),
        Line("docker exec polite true", code=125, err="no container 'polite'"),
    ],
    "volumes": [
        Line("docker volume create --label kind=test data", "data\n"),
        Line("docker run --rm -v data:/d busybox sh -c 'echo kept > /d/file'"),
        Line("docker run --rm --mount type=volume,src=data,dst=/d,readonly busybox cat /d/file", "kept\n"),
        Line(
            "docker run --rm --mount type=volume,src=data,dst=/d,readonly busybox touch /d/x", code=1, err="Read-only"
        ),
        Line(
            "docker run --rm --read-only --tmpfs /run:size=1m busybox sh -c 'touch /run/x && touch /x'",
            code=1,
            err="Read-only",
        ),
        Line("docker run --rm --mount type=tmpfs,dst=/t,readonly busybox touch /t/x", code=1, err="Read-only"),
        Line("docker run --rm --shm-size 16m busybox df -m /dev/shm", r".* 16 .*/dev/shm\n"),
        Line("docker volume ls", r"VOLUME NAME .*\ndata .*\n"),
        Line("docker volume ls --format '{{.Name}} {{.Driver}}' -f label=kind", "data local\n"),
        Line("docker volume inspect -f '{{.Name}} {{.Labels.kind}}' data", "data test\n"),
        Line("docker volume ls -q -f dangling=true", "data\n"),
        Line("docker volume prune -f", r"Total reclaimed space: .+\n"),
        Line("docker volume remove data", "data\n"),
        Line("docker volume rm data", code=125, err="data"),
    ],
    "images": [
        Line("docker images", r"REPOSITORY +TAG +IMAGE ID +CREATED +SIZE\n.*busybox +latest +[0-9a-f]{12} .+"),
        Line("docker image ls --format '{{.Repository}}:{{.Tag}}' python", "python:latest\n"),
        Line("docker images -aq busybox", SHORT),
        Line("docker tag busybox shop/tool:1 && docker images -q shop/tool:1", SHORT),
        Line(
            "docker image inspect -f '{{.Os}}/{{.Architecture}} {{join .Config.Cmd \" \"}}' busybox",
            "linux/amd64 /bin/sh\n",
        ),
        Line("docker history -q busybox", SHORT),
        Line(
            "docker save shop/tool:1 | gzip > @tmp@/tool.tar.gz; docker rmi shop/tool:1", r"Untagged: .*shop/tool:1\n"
        ),
        Line("docker load -q < @tmp@/tool.tar.gz", r".*Loaded image: docker\.io/shop/tool:1\n"),
        Line(
            "printf 'FROM busybox\\nRUN echo built > /made\\nCMD cat /made\\n' | docker build -q -t made -",
            r"sha256:" + ID,
        ),
        Line("docker run --rm made", "built\n"),
        Line("docker push -q @registry@/pushed", code=125, err="there is no image"),
        Line("docker tag made @registry@/pushed:1 && docker push -q @registry@/pushed:1", r"@registry@/pushed:1\n"),
        Line("docker pull --platform linux/arm64 busybox", code=125, err="linux/amd64"),
        Line("docker image rm made @registry@/pushed:1 shop/tool:1", r"Untagged: .*made:latest\n.*Deleted: sha256:.*"),
    ],
    "a container becomes an image": [
        Line("docker run --name note busybox sh -c 'echo kept > /note'"),
        Line("docker diff note", "A /note\n"),
        Line("docker cp note:/note - | tar -xO", "kept\n"),
        Line("docker commit -m 'with a note' -c 'CMD cat /note' note noted", r"sha256:" + ID),
        Line("docker run --rm noted", "kept\n"),
        Line("docker rm note && docker rmi noted", r"note\nUntagged: .*noted:latest\nDeleted: sha256:" + ID),
    ],
    "housekeeping": [
        Line("docker create --name kept busybox sleep 600", ID),
        Line("docker wait kept", "0\n"),
        Line("docker container run --name over -l old busybox echo done", "done\n"),
        Line("docker container ls -a --format '{{.Names}}'", "over\nkept\n"),
        Line("docker ps -aq | wc -l", "2\n"),
        Line("docker ps -l --format '{{.Names}}: {{.Status}}'", r"over: Exited \(0\) .*\n"),
        Line("docker container logs -t over", r"\d{4}-\d\d-\d\dT[0-9:.]+Z done\n"),
        Line("docker container inspect -f '{{.State.ExitCode}}' over", "0\n"),
        Line(
            "docker events --since 1h --until $(($(date +%s) + 1)) -f container=over --format '{{.Action}}'",
            "create\nstart\ndie\n",
        ),
        Line(
            "docker start kept && docker container prune -f",
            r"kept\nDeleted Containers:\n" + ID + r"\nTotal reclaimed space: .+\n",
        ),
        Line("docker version --format '{{.Server.Version}}'", r"\d+\.\d+\.\d+.*\n"),
        Line("docker info --format '{{.ContainersRunning}} of {{.Containers}}'", "1 of 1\n"),
        Line(
            "docker system df",
            r"TYPE +TOTAL +ACTIVE +SIZE +RECLAIMABLE\nImages .+\nContainers +1 +1 .+\nLocal Volumes .+",
        ),
        Line("docker system prune", code=125, err="--force"),
        Line("yes | docker system prune", r"Total reclaimed space: .+\n"),
        Line("docker rm kept", code=125, err="stop it first"),
        Line("docker rm -f $(docker ps -aq)", SHORT),
        Line("docker ps -aq"),
    ],
}


@pytest.fixture(scope="module")
def shop(images: Images) -> Iterator[Host]:
    """A host that has all the images under their short names."""
    with running_host(pool_depth=2) as one, ThreadPoolExecutor() as threads:

        def take(name: str) -> None:
            if name not in IMAGES[:2]:
                images.registry.push(build(name), name)
            one.hyper("pull", "-q", f"{images.registry.address}/{name}")
            one.hyper("tag", f"{images.registry.address}/{name}", name)

        # Side by side: packages are fetched for one while another is unpacked.
        for taken in [threads.submit(take, name) for name in IMAGES]:
            taken.result()
        one.start_exporter()
        yield one


@pytest.fixture
def names(images: Images, tmp_path: Path) -> dict[str, str]:
    """What stands between `@` in the lines; the ports of the range are free, and behind one another."""
    first = free_range(3)
    return {
        "port": str(free_port()),
        "range": str(first),
        "range_end": str(first + 1),
        "range_last": str(first + 2),
        "registry": images.registry.address,
        "tmp": str(tmp_path),
    }


def free_range(count: int) -> int:
    """The first of so many ports on loopback that are free."""

    def found() -> int:
        first = free_port()
        held = []
        try:
            for port in range(first, first + count):
                held.append(socket.create_server(("127.0.0.1", port)))  # noqa: PERF401 -- those made are to be closed
        finally:
            for one in held:
                one.close()
        return first

    number: int = wait_for(found, "ports behind one another")
    return number


@pytest.mark.parametrize("name", SCENARIOS)
def test_dockers_command_lines_do_what_docker_does(
    shop: Host, names: dict[str, str], tmp_path: Path, name: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").symlink_to(shop.hyper_program)
    env = {**os.environ, **shop.env, "PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": "200"}

    def filled(text: str) -> str:
        return re.sub(r"@(\w+)@", lambda match: names[match[1]], text)

    def run(one: Line) -> None:
        done = subprocess.run(
            ["bash", "-c", filled(one.line)],
            stdin=subprocess.DEVNULL, capture_output=True, env=env, timeout=LINE_TIMEOUT_S, check=False,
        )  # fmt: skip
        out, err = done.stdout.decode(), done.stderr.decode()
        shown = f"{one.line}: {done.returncode}\n{out}{err}"
        assert done.returncode == one.code, shown
        assert re.fullmatch(filled(one.out), out, re.DOTALL), shown
        assert re.search(one.err, err), shown

    try:
        for one in SCENARIOS[name]:
            if one.within_s:
                wait_for(lambda one=one: run(one) or True, one.line, one.within_s)
            else:
                run(one)
    finally:
        left = shop.hyper("ps", "-aq", "--no-trunc").stdout.split()
        if left:
            shop.hyper("rm", "-f", "-v", *left)
        shop.hyper("volume", "prune", "-af")


def test_there_are_enough_lines() -> None:
    assert sum(len(lines) for lines in SCENARIOS.values()) >= 60


def test_orphans_become_those_of_the_images_program_as_without_dockers_init(shop: Host) -> None:
    # A grandchild whose parent has ended is process 1's, and stays a zombie while that does not wait for it.
    program = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        "        os._exit(0)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(600)\n"
    )
    shop.run("--name", "childless", "python", "python3", "-c", program)
    wait_for(lambda: shop.hyper("logs", "childless").stdout == "1\n", "it is process 1 of its container")
    shown = shop.hyper("exec", "childless", "sh", "-c", "cat /proc/[0-9]*/stat").stdout
    assert re.search(r"^[0-9]+ \(python3\) Z 1 ", shown, re.MULTILINE), shown
    shop.hyper("rm", "-f", "childless")
