"""What the daemon leaves for later when it comes back: each of these would add a tenth to the time, or more."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from runtime import daemon
before = {name.partition(".")[0] for name in sys.modules}
daemon._spare_pydantic()
from runtime import serving
serving._import_server()
from fastapi.openapi.models import OpenAPI
from runtime.spec import Spec
assert (Spec.__pydantic_complete__, OpenAPI.__pydantic_complete__) == (True, False)
print(*{"pydantic", "fastapi", "uvicorn"} & before, "|", *(name for name in sys.modules if sys.modules[name]))
"""
LATER = {"httpx", "pydantic.v1", "psutil", "pyroute2"}


def test_what_it_imports_and_when() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, _, after = done.stdout.partition("|")
    assert before.split() == [], "its socket is open before it imports these"
    assert {"fastapi", "runtime.engine", "uvicorn"} <= set(after.split())
    assert not LATER & set(after.split())
