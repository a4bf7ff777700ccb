"""What is wrong with a request to the rules of placement; nothing of their arithmetic is loaded to say it."""

from __future__ import annotations


class FleetMalformed(ValueError):
    """The request describes nodes that cannot be: correct the named node's numbers."""


class PlanRefused(ValueError):
    """The plan cannot be carried out, or gains nothing: the sentence names the first move that is wrong."""
