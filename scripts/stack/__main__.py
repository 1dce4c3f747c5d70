"""`python -m scripts.stack up|down|status`."""

from __future__ import annotations

import argparse
import os
import sys

from pydantic import ValidationError

from runtime.errors import RuntimeFault
from scripts.stack import cleanup, flow, service
from scripts.stack.services import services
from scripts.stack.settings import Settings, StackError

DEMO_CONTAINERS = ("demo",)


def up(settings: Settings) -> None:
    """Start what does not run yet, each once the one before it is ready."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    for directory in ("registry", "alertmanager", "prometheus", "victoria-metrics"):
        (settings.data_dir / directory).mkdir(parents=True, exist_ok=True)
    for each in services(settings):
        started = service.start(each, settings.run_dir)
        print(f"stack: {each.name} {'is up' if started else 'runs already'}", flush=True)


def show(settings: Settings) -> None:
    """Say whether data flow, and where to look.

    Raises:
        StackError: they do not.
    """
    for line in flow.check(settings):
        print(f"stack: {line}", flush=True)
    print("\nThe stack is up. To open:")
    for line in flow.addresses(settings):
        print(f"  {line}")
    print(f"  {flow.NO_GRAFANA}")
    print("Run containers with  hyper run ;  python -m scripts.stack status  tells its state,  make down  ends it.")


def down(settings: Settings) -> None:
    """End the demo's containers, stop all others, then end every program, then take the network away."""
    if not settings.run_dir.is_dir():
        print("stack: nothing runs")
        return
    todo = services(settings)
    hyperd = next(each for each in todo if each.name == "hyperd")
    if service.find(settings.run_dir, "hyperd") is None and _left_behind(settings):
        service.start(hyperd, settings.run_dir)  # it crashed: let it adopt its VMs, so that they end in order
    if service.find(settings.run_dir, "hyperd") is not None:
        for line in cleanup.clear_containers(settings, DEMO_CONTAINERS):
            print(f"stack: {line}")
    for each in reversed(todo):
        if service.stop(settings.run_dir, each.name, each.stop_timeout_s):
            print(f"stack: {each.name} is down")
    if service.is_ready(hyperd):
        print(f"stack: a hyperd that this stack did not start keeps its VMs and network ({settings.hyperd_socket})")
        return
    for line in cleanup.kill_orphans(settings):
        print(f"stack: {line}")
    cleanup.clear_host(hyperd.argv[0])
    print("stack: nothing runs")


def status(settings: Settings) -> bool:
    """Say what runs; True if all does."""
    complete = True
    for each in services(settings):
        running = service.find(settings.run_dir, each.name)
        complete = complete and running is not None
        what = "is down" if running is None else f"runs as process {running.pid}"
        print(f"stack: {each.name} {what}, log {settings.run_dir / each.name}.log")
    return complete


def _left_behind(settings: Settings) -> bool:
    return any(settings.config.state_dir.glob("containers/*"))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.stack", description="The stack around the daemons, and the daemons."
    )
    parser.add_argument("action", choices=("up", "down", "status"))
    action = parser.parse_args().action
    if os.geteuid() != 0:
        print("stack: root is needed (taps, rules, control groups): run it as root", file=sys.stderr)
        return 1
    try:
        settings = Settings()
        if action == "status":
            return 0 if status(settings) else 1
        if action == "up":
            up(settings)
            show(settings)
        else:
            down(settings)
    except ValidationError as err:
        for problem in err.errors():
            print(f"stack: setting {'.'.join(map(str, problem['loc']))}: {problem['msg']}", file=sys.stderr)
        return 1
    except (StackError, RuntimeFault) as err:
        print(f"stack: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
