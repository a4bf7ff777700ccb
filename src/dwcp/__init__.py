"""DWCP: place, ship, run and prove work across sites joined by slow, untrusted links."""

__version__ = "0.1.0"
