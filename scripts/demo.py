"""`make demo`: from a checkout to a real image in a micro-VM, with its vital signs. Again is as good as once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
from pydantic import ValidationError

from runtime.errors import RuntimeFault
from scripts.stack import cleanup
from scripts.stack.__main__ import up
from scripts.stack.flow import NO_GRAFANA, addresses
from scripts.stack.service import POLL_S, check_free
from scripts.stack.settings import Settings, StackError
from tests.images.build import BuildError, build
from tests.images.registry import push

NAME = "demo"
IMAGE = "nginx"
HYPER = Path(sys.executable).parent / "hyper"
HYPER_TIMEOUT_S = 300.0
PAGE_TIMEOUT_S = 60.0
METRICS_TIMEOUT_S = 60.0
SHOWN = (
    "container_cpu_usage_seconds_total",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_start_time_seconds",
    "container_state",
    "container_pressure_cpu_waiting_seconds_total",
    "microvm_start_seconds",
    "microvm_host_memory_bytes",
    "microvm_overhead_memory_bytes",
)


def hyper(*arguments: str) -> None:
    """Run `hyper` as a user would, and show it.

    Raises:
        StackError: it failed; it has said why.
    """
    print(f"\n$ hyper {' '.join(arguments)}", flush=True)
    try:
        done = subprocess.run([HYPER, *arguments], check=False, timeout=HYPER_TIMEOUT_S)
    except subprocess.TimeoutExpired as err:
        raise StackError(f"hyper {arguments[0]} did not end within {HYPER_TIMEOUT_S:.0f} s") from err
    if done.returncode != 0:
        raise StackError(f"hyper {arguments[0]} failed with exit code {done.returncode}")


def run_container(settings: Settings, reference: str) -> None:
    """Have the container run the image that `reference` names: kept if it does, else made anew."""
    with cleanup.api(settings) as client:
        answer = client.get(f"/containers/{NAME}")
        container = answer.json() if answer.is_success else None
        images = client.get("/images").raise_for_status().json()
    digest = next(image["digest"] for image in images if reference in image["references"])
    published = {port["host_port"] for port in ((container or {}).get("network") or {}).get("ports", ())}
    if (
        container is not None
        and container["state"] == "running"
        and container["image_digest"] == digest
        and settings.page_port in published
    ):
        print(f"\ndemo: the container {NAME} runs already, from this image")
        return
    if container is not None:
        hyper("rm", "-f", NAME)
    check_free("the published port", f"0.0.0.0:{settings.page_port}", "DEMO_PORT")
    hyper("run", "-d", "--name", NAME, "-p", f"{settings.page_port}:80", reference)


def fetch(url: str, wanted: str, timeout_s: float) -> str:
    """What `url` answers, once it has `wanted` in it.

    Raises:
        StackError: it does not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    seen = "nothing"
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(url, timeout=5.0, trust_env=False)
            if answer.is_success and wanted in answer.text:
                return answer.text
            seen = f"status {answer.status_code} without {wanted!r}"
        except httpx.HTTPError as err:
            seen = f"{type(err).__name__}: {err}"
        time.sleep(POLL_S)
    raise StackError(f"{url} did not answer as it should within {timeout_s:.0f} s; at last: {seen}")


def show_metrics(url: str) -> None:
    """A few lines of /metrics, of the demo's container."""
    text = fetch(url, f'name="{NAME}"', METRICS_TIMEOUT_S)
    print(f"\n$ curl -s {url} | grep '\"{NAME}\"'   # {len(text.splitlines())} lines in all; some of them:")
    for line in text.splitlines():
        if f'"{NAME}"' in line and line.startswith(SHOWN) and float(line.rsplit(" ", 1)[1]) != 0:
            print(line)


def wait_for_rates(exporter: str) -> None:
    """The exporter has sampled the container often enough to tell how much CPU it uses.

    Raises:
        StackError: it has not in time.
    """
    deadline = time.monotonic() + METRICS_TIMEOUT_S
    while time.monotonic() < deadline:
        answer = httpx.get(f"http://{exporter}/stats", timeout=5.0, trust_env=False).raise_for_status()
        for container in answer.json()["containers"]:
            if container["name"] == NAME and container["cpu_ratio"] is not None:
                return
        time.sleep(POLL_S)
    raise StackError(f"the exporter told no CPU use of {NAME} within {METRICS_TIMEOUT_S:.0f} s")


def demo(settings: Settings) -> None:
    """The whole of it."""
    up(settings)
    reference = f"{settings.registry}/{IMAGE}:latest"
    digest = push(build(IMAGE), reference)
    print(f"demo: {reference} is pushed as {digest}", flush=True)
    hyper("pull", reference)
    hyper("pull", f"{settings.registry}/{IMAGE}@{digest}")
    run_container(settings, reference)
    page = f"http://127.0.0.1:{settings.page_port}/"
    text = fetch(page, "micro-VM", PAGE_TIMEOUT_S)
    print(f"\n$ curl -s {page}\n{text.rstrip()}")
    metrics = f"http://{settings.config.exporter_listen}/metrics"
    wait_for_rates(settings.config.exporter_listen)
    hyper("ps")
    hyper("stats", "--no-stream")
    show_metrics(metrics)
    print(f"\nThe demo is up. To open:\n  the page          {page}")
    for line in addresses(settings):
        print(f"  {line}")
    print(f"  {NO_GRAFANA}")
    hyper_path = os.path.relpath(HYPER)  # as it is typed here: make runs where the checkout is
    print(f"Try  {hyper_path} exec {NAME} ps  and  {hyper_path} logs {NAME} ;  make down  ends it.")


def main() -> int:
    """Command line."""
    if os.geteuid() != 0:
        print("demo: root is needed (taps, rules, control groups): run it as root", file=sys.stderr)
        return 1
    try:
        demo(Settings())
    except ValidationError as err:
        for problem in err.errors():
            print(f"demo: setting {'.'.join(map(str, problem['loc']))}: {problem['msg']}", file=sys.stderr)
        return 1
    except (StackError, RuntimeFault, BuildError, httpx.HTTPError, json.JSONDecodeError, RuntimeError) as err:
        print(f"demo: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
