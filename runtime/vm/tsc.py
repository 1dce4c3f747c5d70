"""Frequency of the host's time-stamp counter.

A guest under software emulation that calibrates the counter itself gets it wrong in up to half of all boots, and a
wrong value would be baked into every clone of a template. So the host measures, and tells the guest on its command line
(`tsc_early_khz`). Linux does not export the frequency; it is measured with the instruction itself.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from typing import TYPE_CHECKING

from runtime.errors import HostUnable

if TYPE_CHECKING:
    from collections.abc import Callable

# rdtsc; shl rdx, 32; or rax, rdx; ret  (Intel SDM vol. 2, RDTSC: EDX:EAX)
_READ_COUNTER = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_SPAN_S = 0.05


def measure_khz() -> int:
    """The counter's frequency in kHz, measured over 50 ms against the monotonic clock.

    Raises:
        HostUnable: not an x86-64 host.
    """
    if platform.machine() != "x86_64":
        raise HostUnable(f"this host is {platform.machine()}: only x86_64 is supported")
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
        code.write(_READ_COUNTER)
        anchor = ctypes.c_char.from_buffer(code)
        read_counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))
        first, start_ns = _sample(read_counter)
        time.sleep(_SPAN_S)
        last, end_ns = _sample(read_counter)
        del anchor  # the buffer cannot be closed while something points into it
    return round((last - first) * 1_000_000 / (end_ns - start_ns))


def _sample(read_counter: Callable[[], int]) -> tuple[int, int]:
    """The counter and the clock at one moment: the tightest of several tries, as a switch of tasks spoils some."""
    tries = []
    for _ in range(20):
        before_ns = time.monotonic_ns()
        counter = read_counter()
        after_ns = time.monotonic_ns()
        tries.append((after_ns - before_ns, counter, (before_ns + after_ns) // 2))
    _, counter, at_ns = min(tries)
    return counter, at_ns
