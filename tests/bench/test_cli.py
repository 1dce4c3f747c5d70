"""How long `hyper` itself takes, beside Python that does nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.bench.measuring import goal, show, wall

if TYPE_CHECKING:
    from tests.e2e.conftest import Images
    from tests.host import Host


def test_start_up(host: Host, images: Images) -> None:
    for number in range(5):
        host.run("--name", f"listed{number}", images.busybox, "sleep", "600")
    print()
    nothing = show(
        "python3 -c pass", wall(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True, capture_output=True))
    )
    for arguments in (("--help",), ("ps",)):
        name = f"hyper {' '.join(arguments)}"
        median = show(name, wall(lambda arguments=arguments: host.hyper(*arguments)))
        print(f"ratio {name} / python3 -c pass: {median / nothing:.1f}")
        goal(f"{name}, ms", median, 80)
