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

PASSWD = """root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
redis:x:101:101:redis:/var/lib/redis:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""

GROUP = """root:x:0:
tty:x:5:
adm:x:4:
www-data:x:33:
redis:x:101:
nogroup:x:65534:
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image.

    `files` are texts by absolute path, `links` targets by absolute path, `directories` are made empty. All have
    busybox, which gives /bin/sh and the small tools wherever a package has not brought its own.
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
    "python": Recipe(packages=("python3",), command=("python3",), environment={"PYTHONUNBUFFERED": "1"}),
}
