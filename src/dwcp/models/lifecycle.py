"""The life of a model in one installation: staged, canary, active, rolled back. Pure.

    staged ──► canary at a share of the streams ──► active (100 %)
                   │ fail: back to what was active

Serving everything needs a *fresh* pass of the *same* digest. A refusal changes nothing.
"""

from __future__ import annotations

import msgspec

from dwcp.consensus.core.errors import CoreError
from dwcp.models.shadow import Verdict

PASS_MS = 24 * 3_600_000  # how long a pass stays fresh


class GateClosed(CoreError):
    """The step's condition is not met; nothing has changed."""


class Word(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an evaluation said of one digest, and when (Unix ms)."""

    verdict: Verdict
    at_ms: int
    samples: int


class Lifecycle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Digests, "" for none. `canary_pct` of the streams are decided by `canary`."""

    active: str = ""
    previous: str = ""
    staged: str = ""
    canary: str = ""
    canary_pct: int = 0
    words: dict[str, Word] = {}

    def stage(self, digest: str) -> Lifecycle:
        """Make a model the next candidate; a canary under way ends."""
        if digest == self.active:
            raise GateClosed(f"model {digest[:12]} serves already")
        return msgspec.structs.replace(self, staged=digest, canary="", canary_pct=0)

    def start_canary(self, pct: int) -> Lifecycle:
        """Let the staged model decide for `pct` of the streams, 1 to 99."""
        if not 1 <= pct <= 99:
            raise GateClosed(f"a canary decides for 1 to 99 % of the streams, not {pct}")
        candidate = self.canary or self.staged
        if not candidate:
            raise GateClosed("no model is staged: deploy one to staging first")
        word = self.words.get(candidate)
        if word is not None and word.verdict is Verdict.FAIL:
            raise GateClosed(
                f"model {candidate[:12]} failed its evaluation: train another, or evaluate again"
            )
        return msgspec.structs.replace(self, canary=candidate, canary_pct=pct)

    def judged(self, digest: str, word: Word) -> Lifecycle:
        """Note an evaluation; a canary that fails stops deciding at once."""
        noted = msgspec.structs.replace(self, words={**self.words, digest: word})
        if word.verdict is Verdict.FAIL and digest == noted.canary:
            return msgspec.structs.replace(noted, canary="", canary_pct=0)
        return noted

    def promote(self, *, now_ms: int) -> Lifecycle:
        """Let the candidate decide for every stream."""
        candidate = self.canary or self.staged
        if not candidate:
            raise GateClosed("no model is staged: deploy one to staging first")
        word = self.words.get(candidate)
        if word is None or word.verdict is not Verdict.PASS:
            said = "has not been evaluated" if word is None else f"was judged {word.verdict.value}"
            raise GateClosed(f"model {candidate[:12]} {said}: a full deployment needs a pass")
        if not 0 <= now_ms - word.at_ms <= PASS_MS:
            hours = PASS_MS // 3_600_000
            raise GateClosed(f"the pass of model {candidate[:12]} is older than {hours} h: evaluate it again")
        return msgspec.structs.replace(
            self, active=candidate, previous=self.active, staged="", canary="", canary_pct=0
        )

    def roll_back(self) -> Lifecycle:
        """Back to the model before: ends a canary, or undoes the last promotion."""
        if self.canary:
            return msgspec.structs.replace(self, canary="", canary_pct=0)
        if not self.active:
            raise GateClosed("no model serves: there is nothing to roll back")
        return msgspec.structs.replace(self, active=self.previous, previous="")
