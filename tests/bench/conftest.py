"""Fixtures of the end-to-end suite serve the benchmarks as well."""

from tests.e2e.conftest import host, images

__all__ = ["host", "images"]
