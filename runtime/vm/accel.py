"""What runs the guests: KVM where it works, software emulation (TCG) where it does not.

A `/dev/kvm` that opens proves nothing: under some hypervisors it makes VMs in which an ordinary guest hangs. So a guest
is booted to its agent, with a deadline, once for each boot of the host, kernel and QEMU; the verdict is remembered.
"""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from runtime import cgroups
from runtime.errors import HostUnable, RuntimeFault
from runtime.vm import launch, machine, tsc

if TYPE_CHECKING:
    from runtime.cgroups import HostCgroups
    from runtime.config import Config
    from runtime.vm.kernel import Kernel

PROBE_TIMEOUT_S = 6.0
_PROBE_RAM_BYTES = 128 * 1024**2


@dataclass(frozen=True, slots=True)
class Verdict:
    """The accelerator and how it was found, for people to read; `tsc_khz` as measured in this boot of the host."""

    accel: Literal["tcg", "kvm"]
    reason: str
    tsc_khz: int


async def probe(config: Config, qemu: str, qemu_version: str, kernel: Kernel, uid: int, groups: HostCgroups) -> Verdict:
    """The verdict for this host, from memory or by booting a guest.

    Raises:
        HostUnable: not an x86-64 host, or KVM is demanded by the configuration and does not work.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = [boot_id, qemu_version, kernel.key, config.accel]
    memory = config.data_dir / "accel.json"
    try:
        remembered = json.loads(memory.read_text())
        if remembered.pop("key") == key:
            return Verdict(**remembered)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or of another version: probe again
    tsc_khz = tsc.measure_khz()
    verdict = await _probe(config, launch.Host(qemu, qemu_version, kernel, tsc_khz), uid, groups)
    temporary = memory.with_suffix(".new")
    temporary.write_text(json.dumps({"key": key, **asdict(verdict)}))
    temporary.replace(memory)
    return verdict


async def _probe(config: Config, host: launch.Host, uid: int, groups: HostCgroups) -> Verdict:
    if config.accel == "tcg":
        return Verdict("tcg", "configured (accel = tcg)", host.tsc_khz)
    if not Path("/dev/kvm").exists():
        return Verdict("tcg", "this host has no /dev/kvm", host.tsc_khz)
    directory = config.state_dir / "probe"
    shutil.rmtree(directory, ignore_errors=True)  # of a daemon that was killed meanwhile, whose QEMU may go on
    tap = f"hypprobe{secrets.token_hex(3)}"  # that one has its own
    try:
        shape = machine.Shape(_PROBE_RAM_BYTES, 1, "kvm")
        inside = cgroups.directories(groups.create("probe"))
        order = launch.Order("probe", directory, shape, uid, inside, tap, None, directory / "console.log")
        started = await launch.start(host, order, "cold", timeout_s=PROBE_TIMEOUT_S)
        started.agent.close()
        await started.process.kill()
    except RuntimeFault as err:
        if config.accel == "kvm":
            raise HostUnable(
                f"KVM is demanded (HYPER_ACCEL=kvm) and does not work: {err}. Set HYPER_ACCEL=auto to fall back",
                field="accel",
            ) from err
        return Verdict("tcg", f"/dev/kvm is there, but a guest does not boot with it: {err}", host.tsc_khz)
    else:
        return Verdict("kvm", "a guest booted with it", host.tsc_khz)
    finally:
        await groups.remove(groups.create("probe"))
        shutil.rmtree(directory, ignore_errors=True)
