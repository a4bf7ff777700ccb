"""Which of two models is better, from paired costs as they come, at any time one cares to look.

Every decision is priced under both models; `x` is the logarithm of candidate over
incumbent. A confidence sequence holds at all sample sizes at once, so a canary may be
read after each sample without that making a false verdict likelier. Source: Howard,
Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence
sequences" (2021), the normal mixture boundary, with the running variance (asymptotic form).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

SAMPLES_MIN = 200
MARGIN = 0.01  # a candidate may cost this much more, in log, and still be called no worse
ALPHA = 0.05
_MIXTURE_AT = 500  # samples at which the interval is tightest


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105  a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired samples so far. `mean` and `squares` (sum of squared deviations) are of log ratios."""

    samples: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, candidate: float, incumbent: float) -> Comparison:
        """One decision priced under both; costs are positive and finite. Welford's update."""
        if not (0 < candidate < math.inf and 0 < incumbent < math.inf):
            raise ValueError(f"costs are positive and finite: {candidate}, {incumbent}")
        x = math.log(candidate / incumbent)
        samples = self.samples + 1
        mean = self.mean + (x - self.mean) / samples
        return Comparison(samples, mean, self.squares + (x - self.mean) * (x - mean))

    @property
    def radius(self) -> float:
        """Half the width of the interval around `mean`; infinite before two samples."""
        n = self.samples
        if n < 2:
            return math.inf
        variance = self.squares / (n - 1)
        rho = _MIXTURE_AT / (2 * math.log(1 / ALPHA) + math.log(1 + 2 * math.log(1 / ALPHA)))
        boundary = (n + rho) * (math.log((n + rho) / rho) + 2 * math.log(1 / ALPHA))
        return math.sqrt(variance * boundary) / n

    @property
    def low(self) -> float:
        return self.mean - self.radius

    @property
    def high(self) -> float:
        return self.mean + self.radius

    def verdict(self, *, samples_min: int = SAMPLES_MIN, margin: float = MARGIN) -> Verdict:
        """`pass`: surely no worse than by `margin`. `fail`: surely worse. Else not known yet."""
        if self.samples >= 2 and self.low > 0 and self.samples >= min(samples_min, 50):
            return Verdict.FAIL  # harm is stopped before the minimum that a pass needs
        if self.samples < samples_min:
            return Verdict.INCONCLUSIVE
        return Verdict.PASS if self.high < margin else Verdict.INCONCLUSIVE
