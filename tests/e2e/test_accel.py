"""KVM is believed only after a guest has booted with it, and the verdict is told and remembered."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.host import Host, wait_for


def test_the_verdict_is_found_told_and_remembered() -> None:
    host = Host(accel="auto", template="false")
    try:
        host.start()
        info = json.loads(host.hyper("info", "--format", "json").stdout)
        assert info["accel"] in {"kvm", "tcg"}
        if not Path("/dev/kvm").exists():
            assert "no /dev/kvm" in info["accel_reason"]
        else:
            assert "boot" in info["accel_reason"]
        print(f"\n{info['accel']}: {info['accel_reason']}")
        host.hyperd.stop()
        began = time.monotonic()
        host.start()
        assert time.monotonic() - began < 5, "no second probe"
        assert json.loads(host.hyper("info", "--format", "json").stdout)["accel_reason"] == info["accel_reason"]
    finally:
        host.close()


def test_kvm_that_is_demanded_is_used_or_refused() -> None:
    host = Host(accel="kvm")
    try:
        host.hyperd.start()
        process = host.hyperd.process
        assert process is not None
        wait_for(lambda: process.poll() is not None or host.hyper("info", check=False).returncode == 0, "an answer", 60)
        if process.poll() is None:
            assert json.loads(host.hyper("info", "--format", "json").stdout)["accel"] == "kvm"
            return
        assert process.returncode == 1
        said = host.hyperd.log.read_text()
        assert "Traceback" not in said
        assert "HYPER_ACCEL" in said.splitlines()[-1]
    finally:
        host.hyperd.env["HYPER_ACCEL"] = "tcg"  # what cleans up must be able to start
        host.close()
