"""What is in each image: packages, files, and the configuration that a runtime reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = """<!doctype html>
<title>Hyperpulse</title>
<h1>Hello from a micro-VM</h1>
<p>nginx sent this page from a virtual machine of its own.</p>
"""

NGINX_SITE = """server {
    listen 80 default_server;
    root /usr/share/nginx/html;
    location = /healthz { access_log off; return 200 "ok\\n"; }
}
"""

# Made with the image: at the first start in an emulated guest it would take the better part of a minute. Small segments
# of its log make a volume with the cluster quick to fill.
POSTGRES_CLUSTER = """set -e
export PGDATA=/var/lib/postgresql/data
/usr/lib/postgresql/15/bin/initdb --username=postgres --auth=trust --encoding=UTF8 --locale=C --wal-segsize=1 --no-sync
echo "host all all all trust" >> "$PGDATA/pg_hba.conf"
echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
"""

PASSWD = """root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
redis:x:101:101:redis:/var/lib/redis:/usr/sbin/nologin
postgres:x:105:105:postgres:/var/lib/postgresql:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""

GROUP = """root:x:0:
tty:x:5:
adm:x:4:
www-data:x:33:
redis:x:101:
postgres:x:105:
nogroup:x:65534:
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image.

    `files` are texts by absolute path, `links` targets by absolute path, `directories` are made empty. All have
    busybox, which gives /bin/sh and the small tools wherever a package has not brought its own. `unwanted` are patterns
    of paths that the packages bring and the image does without; `prepare` is a shell script that is run in the image's
    root as its user, at the end.
    """

    packages: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[str, ...] = ()
    working_dir: str = "/"
    user: str = ""
    stop_signal: str = "SIGTERM"
    files: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    directories: Mapping[str, str] = field(default_factory=dict)
    unwanted: tuple[str, ...] = ()
    prepare: str = ""


RECIPES: Mapping[str, Recipe] = {
    "busybox": Recipe(command=("/bin/sh",)),
    "nginx": Recipe(
        packages=("nginx",),
        entrypoint=("nginx",),
        command=("-g", "daemon off;"),
        ports=("80/tcp",),
        stop_signal="SIGQUIT",
        files={
            "/usr/share/nginx/html/index.html": PAGE,
            "/etc/nginx/sites-available/default": NGINX_SITE,
        },
        links={
            "/etc/nginx/sites-enabled/default": "../sites-available/default",
            "/var/log/nginx/access.log": "/dev/stdout",
            "/var/log/nginx/error.log": "/dev/stderr",
        },
        directories={"/var/lib/nginx": "0:0", "/var/log/nginx": "0:0"},
    ),
    "redis": Recipe(
        packages=("redis-server",),
        entrypoint=("redis-server",),
        command=("--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/var/lib/redis"),
        ports=("6379/tcp",),
        user="redis",
        working_dir="/var/lib/redis",
        directories={"/var/lib/redis": "101:101"},
    ),
    "postgres": Recipe(
        packages=("postgresql-15",),
        entrypoint=("postgres",),
        environment={
            "PATH": "/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PGDATA": "/var/lib/postgresql/data",
        },
        ports=("5432/tcp",),
        user="postgres",
        working_dir="/var/lib/postgresql",
        stop_signal="SIGINT",  # ends sessions; SIGTERM would wait for them
        links={"/var/run": "/run"},
        directories={"/var/lib/postgresql": "105:105", "/run/postgresql": "105:105"},
        prepare=POSTGRES_CLUSTER,
        # The compiler of queries with LLVM, and the administration of clusters in Perl.
        unwanted=(
            "usr/lib/x86_64-linux-gnu/libLLVM-*",
            "usr/lib/x86_64-linux-gnu/libz3.so*",
            "usr/lib/postgresql/15/lib/llvmjit*",
            "usr/lib/postgresql/15/lib/bitcode",
            "usr/bin/perl*",
            "usr/bin/psql",
            "usr/share/perl*",
            "usr/lib/x86_64-linux-gnu/perl*",
            "usr/lib/x86_64-linux-gnu/libperl*",
            "usr/share/i18n",
            "usr/share/zoneinfo/right",
            "usr/share/zoneinfo/posix",
            "usr/share/postgresql-common",
            "usr/bin/pg_*",
            "usr/bin/openssl",
        ),
    ),
    "tools": Recipe(packages=("procps", "sysstat", "iproute2"), command=("/bin/sh",)),
    "python": Recipe(packages=("python3",), command=("python3",), environment={"PYTHONUNBUFFERED": "1"}),
}
