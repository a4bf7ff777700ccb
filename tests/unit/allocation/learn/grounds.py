"""Small courses and a base rule for the training tests."""

from __future__ import annotations

import functools

import numpy as np

from dwcp.allocation.learn import courses
from dwcp.allocation.learn.config import Config
from dwcp.allocation.learn.courses import Course
from dwcp.allocation.policies.rules import RULES, Knobs, policy

BASE = policy(RULES["balance"], Knobs(money=1.0))
SHARPNESS = np.array([20.0], dtype=np.float32)


def tiny(**changes: object) -> Config:
    """A run of seconds."""
    settings: dict[str, object] = {
        "windows": 3, "validation": 2, "jobs": 60, "warm_jobs": 20, "hidden": 8, "envs": 2, "events": 32,
        "ahead": 6, "reach": 14, "updates": 4, "batch": 16, "ring": 128, "chunks": 2, "segments": 4, "patience": 4,
        "actor_after": 2,
    }  # fmt: skip
    return Config(**{**settings, **changes})  # type: ignore[arg-type]


@functools.cache
def course(stale: bool = False) -> Course:
    return courses.training(0, 3, base=BASE, like=tiny(stale=stale))


@functools.cache
def exam(stale: bool = False) -> Course:
    found = courses.validation(2, base=BASE, like=tiny(stale=stale))
    return courses.padded(found, course(stale).nodes)
