"""`hyper-remediation`: the daemon behind Alertmanager's webhook."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import signal
import socket
import sys
import time
from dataclasses import fields
from typing import TYPE_CHECKING

import uvicorn
from pydantic import ValidationError

from alerts.errors import AlertsFault, BadSetting
from alerts.remediation import policyfile
from alerts.remediation.actions import Performer
from alerts.remediation.app import build_app
from alerts.remediation.controller import Controller
from alerts.remediation.events import Follower
from alerts.remediation.evidence import EvidenceSaver
from alerts.remediation.feed import FeedFile
from alerts.remediation.guards import Limits
from alerts.remediation.hyperd import Hyperd
from alerts.remediation.journal import Journal
from alerts.remediation.pressure import Pressure
from alerts.remediation.samples import Exporter
from alerts.remediation.scanner import Scanner
from alerts.remediation.settings import Settings
from alerts.remediation.telemetry import Telemetry
from runtime.config import Config
from runtime.impatience import Impatient

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fastapi import FastAPI

MAX_CONNECTIONS = 200
MAX_TOKEN_BYTES = 4096
MIN_TOKEN_CHARS = 16
STOP_FILE = "remediation.stop"
_COUNTS = ("bucket_size", "host_bucket_size", "give_up_count", "attempts", "flap_count", "flap_confirm_count")


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`.

    Raises:
        BadSetting: it is neither.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise BadSetting(f"remediation_listen {text!r} is not host:port, for example 127.0.0.1:9721")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. A name other than localhost may resolve to anything: no."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path | None) -> str | None:
    """The bearer token, or None if none is configured.

    Raises:
        BadSetting: the file cannot be read, is empty, too short to be a secret, or too long.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TOKEN_BYTES + 1)
        token = raw.decode("ascii").strip()
    except OSError as err:
        raise BadSetting(f"remediation_token_file {path}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise BadSetting(f"remediation_token_file {path}: not ASCII text") from err
    if len(raw) > MAX_TOKEN_BYTES or len(token) < MIN_TOKEN_CHARS:
        raise BadSetting(f"remediation_token_file {path}: {MIN_TOKEN_CHARS} to {MAX_TOKEN_BYTES} characters are needed")
    return token


def parse_settings(pairs: Sequence[str]) -> Settings:
    """Settings and guards with `name=number` laid over the defaults.

    Raises:
        BadSetting: there is no such setting, or it is no number above zero.
    """
    guards: dict[str, float] = {field.name: getattr(Limits(), field.name) for field in fields(Limits)}
    patience: dict[str, float] = {
        field.name: getattr(Settings(), field.name) for field in fields(Settings) if field.name != "limits"
    }
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if name not in guards and name not in patience:
            raise BadSetting(f"--set {pair}: no such setting; there are {', '.join([*guards, *patience])}")
        if not 0 < number < float("inf") or (name in _COUNTS and number != int(number)):
            raise BadSetting(f"--set {pair}: a number above zero is needed, and a whole one for {', '.join(_COUNTS)}")
        target = guards if name in guards else patience
        target[name] = int(number) if name in _COUNTS else number
    limits = Limits(**guards)  # type: ignore[arg-type]  # counts are whole numbers, see above
    return Settings(limits, **patience)  # type: ignore[arg-type]  # counts are whole numbers, see above


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as err:
        raise BadSetting(f"remediation_listen {host}:{port}: {err.strerror}") from err


def serving(app: FastAPI, protocol: type[Impatient] = Impatient) -> uvicorn.Server:
    """The server of an application."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol,
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=5,
            timeout_keep_alive=30,
            limit_concurrency=MAX_CONNECTIONS,
        )
    )


def run(config: Config, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        BadSetting: the address, the token or the policy file cannot be used.
        AuditUnwritable: the audit cannot be opened, or another controller has it.
    """
    host, port = parse_listen(config.remediation_listen)
    token = read_token(config.remediation_token_file)
    policy_file = policyfile.load(config.remediation_policy_file)
    if token is None and not is_loopback(host):
        raise BadSetting(
            f"remediation_listen {host}:{port} can be reached from elsewhere: set remediation_token_file, "
            "or listen on 127.0.0.1"
        )
    # The address first: a second controller that cannot have it must not wait for, or replay, the audit.
    listener = _listen(host, port)
    journal = Journal(config.data_dir / "audit")
    telemetry = Telemetry()
    latest = journal.latest_action_at()
    if latest is not None:
        telemetry.last_action(latest)
    hyperd = Hyperd(config.state_dir / "hyperd.sock")
    stop_file = config.data_dir / STOP_FILE
    exporter = Exporter(config.exporter_url)
    pressure = Pressure(exporter, settings.cause_ttl_s, settings.rest_s)
    saver = EvidenceSaver(hyperd, exporter)
    feed = FeedFile(config.remediation_feed_file, telemetry)
    feed.refresh()  # before what was left unfinished is taken up, which may need it
    performer = Performer(hyperd, saver, stop_file, settings, policy_file.follow, feed)
    controller = Controller(journal, hyperd, performer, telemetry, stop_file, policy_file, pressure, settings)
    telemetry.standing_still(stopped=lambda: controller.stopped, waiting=lambda: len(journal.waiting(time.time())))
    background = [Follower(hyperd, controller.submit_signal, pressure, settings).run, controller.take_up_held]
    if config.remediation_feed_file is not None:
        background.append(Scanner(hyperd, feed, controller.submit_holes, settings).run)
    app = build_app(controller, journal, telemetry, token, policy_file=policy_file, background=background)
    server = serving(app)
    # uvicorn raises the signal anew once it has shut down; that is a clean end, not a death by signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    logging.getLogger("hyper.remediation").info("listening on %s:%d", host, listener.getsockname()[1])
    try:
        server.run(sockets=[listener])
    finally:
        journal.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 after SIGTERM, 1 audit trouble, 2 a wrong setting."""
    parser = argparse.ArgumentParser(prog="hyper-remediation", description=__doc__)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="a guard or a setting, for example cooldown_s=60",
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        run(Config(), parse_settings(arguments.set))
    except AlertsFault as err:
        sys.stderr.write(f"hyper-remediation: {err}\n")
        return err.exit_code
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        sys.stderr.write(f"hyper-remediation: configuration: {'.'.join(map(str, first['loc']))}: {first['msg']}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
