"""compression-api with the tests' small linear family: a composition root, run as a process."""

from __future__ import annotations

from functools import partial

from tests.unit.services.compression_api.scene import LinearFamily

from dwcp.runtime.process import run
from dwcp.services.compression_api.__main__ import main
from dwcp.services.compression_api.config import CompressionConfig

if __name__ == "__main__":
    run(CompressionConfig, partial(main, family=LinearFamily()))
