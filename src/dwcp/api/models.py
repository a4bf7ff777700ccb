"""Models of a service as its API shows and changes them: list, show, deploy, canary, roll back."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from dwcp.api.requests import Request, request
from dwcp.api.workloads import Shape

PREFIX = ("api", "v1", "models")
UPLOAD_BYTES_MAX = 96 << 20


class Roles(Shape, frozen=True):
    """Digests, "" for none; `canary` decides for `canary_pct` of the streams."""

    active: str = ""
    previous: str = ""
    staged: str = ""
    canary: str = ""
    canary_pct: int = 0


class Evaluation(Shape, frozen=True):
    """A trial under way. Costs are natural logs of subject over reference; None before two samples. `share_seen`:
    of the questions with a sample, how many the subject has decided."""

    subject: str
    reference: str
    verdict: str
    samples: int
    samples_needed: int
    log_cost_mean: float
    log_cost_low: float | None
    log_cost_high: float | None
    faults: int
    selection_p99_us: float
    share_seen: float = 0.0


class Model(Shape, frozen=True):
    """One model of the registry. `verdict` "" until it was evaluated; times are Unix ms."""

    digest: str
    version: str
    figures: dict[str, float]
    roles: tuple[str, ...] = ()
    verdict: str = ""
    samples: int = 0
    judged_at_ms: int = 0


class Models(Shape, frozen=True):
    """All models of one kind. `trouble`: why the active one does not serve, "" if it does. `otherwise`: what
    answers where none is active."""

    name: str
    roles: Roles
    models: tuple[Model, ...]
    evaluation: Evaluation | None = None
    drifted: tuple[str, ...] = ()
    trouble: str = ""
    otherwise: str = ""


class Upload(Shape, frozen=True):
    """A trained model's two files; bytes travel as base64."""

    manifest: bytes
    weights: bytes
    dry_run: bool = False


class Step(Shape, frozen=True):
    """A change of the lifecycle. `pct` is for canaries: 1 to 99, 100 deploys to all."""

    pct: Annotated[int, Meta(ge=0, le=100)] = 0
    dry_run: bool = False


class Changed(Shape, frozen=True):
    """What was done, or would be (`dry_run`), and how things stand then."""

    did: str
    digest: str
    dry_run: bool
    models: Models
    checks: dict[str, float]  # figures of the gates


class Shown(Shape, frozen=True):
    """One model with its whole manifest."""

    digest: str
    manifest: msgspec.Raw


def models() -> Request:
    return request("GET", *PREFIX)


def show(digest: str) -> Request:
    """`digest` may be a prefix that only one model has."""
    return request("GET", *PREFIX, digest)


def deploy(upload: Upload) -> Request:
    return request("POST", *PREFIX, "deploy", body=upload)


def canary(pct: int, *, dry_run: bool = False) -> Request:
    return request("POST", *PREFIX, "canary", body=Step(pct, dry_run))


def roll_back(*, dry_run: bool = False) -> Request:
    return request("POST", *PREFIX, "rollback", body=Step(0, dry_run))
