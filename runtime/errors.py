"""Errors of the runtime. Each knows its HTTP status, a code, and the exit code of `hyper`.

RuntimeFault                 500  internal
├── InvalidInput             400  invalid_input
├── NotFound                 404  not_found
│   └── ImageUnknown         404  image_unknown
├── Conflict                 409  conflict
│   ├── NameInUse            409  name_in_use
│   ├── PortInUse            409  port_in_use
│   ├── NoKnownGood          409  no_known_good
│   └── DigestMoved          409  digest_moved
├── Upstream                 502  upstream          a registry
│   ├── WrongDigest          502  wrong_digest
│   ├── WrongPlatform        502  wrong_platform
│   └── BadLayer             502  bad_layer
├── GuestFailed              502  guest_failed      the agent, or QEMU
│   ├── CommandNotFound      400  command_not_found   exit code 127
│   └── CommandNotExecutable 400  command_not_executable   exit code 126
├── HostUnable               503  host_unable       no QEMU, no kernel, not root
└── DiskFull                 507  disk_full
"""

from __future__ import annotations


class RuntimeFault(Exception):  # noqa: N818 -- a base that is no "…Error" reads better where it is raised
    """Base of all errors of the runtime; the message says what is wrong, where, and what to do."""

    status = 500
    code = "internal"
    exit_code = 125

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def to_dict(self) -> dict[str, dict[str, str | None]]:
        """The body of an error answer, as `docs/reference/api.md` has it."""
        return {"error": {"code": self.code, "message": self.message, "field": self.field}}


class InvalidInput(RuntimeFault):
    """The caller asked for something that cannot be."""

    status = 400
    code = "invalid_input"


class NotFound(RuntimeFault):
    """No such container, image or session."""

    status = 404
    code = "not_found"


class ImageUnknown(NotFound):
    """The image is neither here nor in its registry."""

    code = "image_unknown"


class Conflict(RuntimeFault):
    """What is there already forbids it."""

    status = 409
    code = "conflict"


class NameInUse(Conflict):
    """Another container has the name."""

    code = "name_in_use"


class PortInUse(Conflict):
    """Somebody listens on the host port."""

    code = "port_in_use"


class NoKnownGood(Conflict):
    """There is no earlier image to go back to."""

    code = "no_known_good"


class DigestMoved(Conflict):
    """A name of an image is that of another one by now."""

    code = "digest_moved"


class Upstream(RuntimeFault):
    """A registry cannot be reached or answers wrongly."""

    status = 502
    code = "upstream"


class WrongDigest(Upstream):
    """Content does not have the digest that was asked for."""

    code = "wrong_digest"


class WrongPlatform(Upstream):
    """The image is not for this architecture."""

    code = "wrong_platform"


class BadLayer(Upstream):
    """A layer cannot be unpacked, or tries to leave its root."""

    code = "bad_layer"


class GuestFailed(RuntimeFault):
    """QEMU ended, or the agent did not answer or refused."""

    status = 502
    code = "guest_failed"


class CommandNotFound(GuestFailed):
    """The program to run does not exist in the image."""

    status = 400
    code = "command_not_found"
    exit_code = 127


class CommandNotExecutable(GuestFailed):
    """The program to run is not executable."""

    status = 400
    code = "command_not_executable"
    exit_code = 126


class HostUnable(RuntimeFault):
    """This host lacks something: QEMU, a kernel, root, a device."""

    status = 503
    code = "host_unable"


class DiskFull(RuntimeFault):
    """No space left where the runtime keeps its data."""

    status = 507
    code = "disk_full"
