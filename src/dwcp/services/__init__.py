"""The processes, each with its composition root."""

import sys

# structlog would load rich for tracebacks in colour: 4 MB of every process, and services write JSON.
if "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]
    import structlog as _  # noqa: F401  # loaded without it, once

    del sys.modules["rich"]
