"""DWCP: place, ship, run and prove work across sites joined by slow, untrusted links."""

import sys

__version__ = "0.1.0"

# httpx would bring its own command line (rich, click, pygments) into every process: 5 MB, a tenth of a start.
# Absent like this, `import httpx` does without.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
