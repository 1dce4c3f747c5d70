"""How far skopeo is with each blob, by the bars that it draws on a terminal: it tells it nowhere else."""

from __future__ import annotations

import re

from runtime.images.image import Progress, Status

_BAR = re.compile(r"Copying blob ([0-9a-f]{12}) \[[^\]]*\] ([0-9.]+)([KMGT]?i?)[bB] / ")
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_LONGEST_BAR = 512


def parse(text: str) -> dict[str, int]:
    """Bytes by the beginning of a blob's digest, as the last bar of each says."""
    factors = {**_FACTORS, **_BINARY}
    found = {}
    for name, number, unit in _BAR.findall(text):
        try:
            found[name] = round(float(number) * factors.get(unit, 1))
        except ValueError:  # more than one point
            continue
    return found


class Bars:
    """Takes what skopeo writes, piece by piece, and says which layers have moved since it was last asked."""

    def __init__(self, sizes: dict[str, int]) -> None:
        """`sizes`: bytes by digest, of what is copied."""
        self._sizes = sizes
        self._digests = {digest.removeprefix("sha256:")[:12]: digest for digest in sizes}
        self._text = ""
        self._told: dict[str, int] = {}

    def feed(self, piece: bytes) -> None:
        """A piece of the output, which may end within a bar."""
        self._text += piece.decode("ascii", errors="replace")

    def moved(self, status: Status) -> list[Progress]:
        """A step for each layer that has moved; a bar of anything else is passed over."""
        text, self._text = self._text, self._text[-_LONGEST_BAR:]
        steps = []
        for name, current in parse(text).items():
            digest = self._digests.get(name)
            if digest is not None and current > self._told.get(digest, -1):
                self._told[digest] = current
                total = self._sizes[digest]
                steps.append(Progress(status, digest, min(current, total), total))
        return steps
