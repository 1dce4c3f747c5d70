"""`hyper-exporter`: collects on its own clock and serves the last snapshot."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import resource
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from pydantic import ValidationError

from collector.rounds import Collector
from collector.watch import Settings
from exporter.server import Application
from runtime.config import CONFIG_FILE, Config, info_label
from runtime.impatience import Impatient

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from collector.snapshot import Snapshot
    from exporter.influx import InfluxWriter

logger = logging.getLogger(__name__)

EXIT_USAGE = 2
EXIT_UNABLE = 1
MAX_CONNECTIONS = 64
GARBAGE_LIMIT = 50_000  # objects
_EPILOG = f"""\
Every option has a setting in {CONFIG_FILE} and in the environment, as the reference of the configuration says.
Containers are found in the state directory; hyperd need not be running.

  hyper-exporter                           serve http://127.0.0.1:9720/metrics
  hyper-exporter --once | grep cpu_usage   take one sample, print it, end
  hyper run --label hyper.metrics.tier=deep nginx   sample this container deep
  hyper run --label hyper.metrics=8080/metrics shop   relay what its application exports
  HYPER_INFLUX_URL=http://db:8086 hyper-exporter   also write to InfluxDB
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    for library in ("uvicorn", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        config = Config(
            **{
                key: value
                for key in ("state_dir", "exporter_listen", "interval_s", "deep")
                if (value := getattr(arguments, key)) is not None
            }
        )
    except (ValidationError, ValueError) as err:
        return _fail(f"configuration: {_one_line(err)}", EXIT_USAGE)
    _raise_descriptor_limit()
    gc.disable()  # in favour of `look_for_garbage`
    settings = Settings(
        node=config.node,
        root=arguments.root,
        deep=config.deep,
        alertmanager_url=config.alertmanager_url,
        info_labels={name: info_label(name) for name in config.info_labels},
    )
    collector = Collector(
        config.state_dir, settings, interval_s=config.interval_s, tombstone_ttl_s=config.tombstone_ttl_s
    )
    if arguments.once:
        try:
            return asyncio.run(_once(collector))
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    try:
        listener = _listen(config.exporter_listen)
    except ValueError as err:
        return _fail(f"exporter_listen: {err}", EXIT_USAGE)
    except OSError as err:
        reason = err.strerror or str(err)
        return _fail(
            f"cannot listen on {config.exporter_listen}: {reason}. Stop what uses it, or choose another with --listen",
            EXIT_UNABLE,
        )
    try:
        influx = _influx(config)
    except OSError as err:
        return _fail(f"cannot use {config.data_dir}/influx-spool: {err.strerror}. Set data_dir", EXIT_UNABLE)
    with listener:
        asyncio.run(_serve(collector, listener, influx))
    return 0


def look_for_garbage() -> None:
    """Collect cycles if there may be many; to be called between rounds.

    A round has some 80 objects a container in flight, and no cycle. To go through them in the middle of it, as Python
    would, was a tenth of what a round over 1000 containers costs.
    """
    if gc.get_count()[0] > GARBAGE_LIMIT:
        gc.collect()


async def _once(collector: Collector) -> int:
    application = Application(_version())
    application.publish(await collector.round())
    # The CPU ratio needs two samples, `/metrics` does not.
    sys.stdout.write(application.text())
    await collector.aclose()
    return 0


async def _serve(collector: Collector, listener: socket.socket, influx: InfluxWriter | None) -> None:
    application = Application(_version(), influx.points if influx else tuple)

    def publish(snapshot: Snapshot) -> None:
        application.publish(snapshot)
        if influx is not None:
            influx.offer(replace(snapshot, points=(*snapshot.points, *application.own_points())))
        first.set()
        look_for_garbage()

    first = asyncio.Event()
    server = Server(application)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if influx is not None:
        influx.start()
    rounds = asyncio.create_task(collector.run(publish))
    stopping = asyncio.create_task(stop.wait())
    sampled = asyncio.create_task(first.wait())
    await asyncio.wait((sampled, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        host, port = listener.getsockname()[:2]
        logger.info("serving on http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)
        serving = asyncio.create_task(server.serve([listener]))
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
    for task in (rounds, sampled, stopping):
        task.cancel()
    await asyncio.gather(rounds, sampled, stopping, return_exceptions=True)
    await collector.aclose()
    if influx is not None:
        await asyncio.to_thread(influx.stop)


class Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again at its end, and a clean stop would look like a kill."""

    def __init__(self, application: Application, protocol: type[Impatient] = Impatient) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                loop="asyncio",
                http=protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_config=None,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=2,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


def _influx(config: Config) -> InfluxWriter | None:
    if not config.influx_url:
        return None
    # The client library takes 20 MB and a third of a second; who does not use it does not pay for it.
    from exporter.influx import InfluxWriter, Target

    target = Target(config.influx_url, config.influx_org, config.influx_bucket, config.influx_token_file)
    return InfluxWriter(target, config.data_dir / "influx-spool", config.node)


def _listen(address: str) -> socket.socket:
    """A listening socket of `host:port`, `[v6]:port` or `:port`.

    Raises:
        ValueError: it is none of these.
        OSError: the address is in use, or not of this host.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(MAX_CONNECTIONS)
    except BaseException:
        listener.close()
        raise
    return listener


def _raise_descriptor_limit() -> None:
    # A running container takes about a dozen.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hyper-exporter",
        description="Collects the vital signs of every micro-VM on this host and serves them to Prometheus.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hyper-exporter {_version()}")
    parser.add_argument("--listen", dest="exporter_listen", metavar="HOST:PORT", help="address of /metrics")
    parser.add_argument("--interval", dest="interval_s", type=float, metavar="SECONDS", help="time between samples")
    parser.add_argument(
        "--deep", action="store_true", default=None, help="sample all containers deep: some 130 more series each"
    )
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="where the container records are")
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="read /proc and /sys below DIR instead of /"
    )
    parser.add_argument("--once", action="store_true", help="take one sample, print it as Prometheus text, and end")
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: info"
    )
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("hyperpulse")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a source tree that is not installed


def _one_line(err: ValueError) -> str:
    if isinstance(err, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in err.errors())
    return str(err).splitlines()[0]


def _fail(message: str, code: int) -> int:
    print(f"hyper-exporter: {message}", file=sys.stderr)  # noqa: T201 -- the user's one line
    return code


if __name__ == "__main__":
    sys.exit(main())
