"""`dwcp doctor`: what this machine has, what is missing, and the line that supplies it."""

from __future__ import annotations

from dwcp.cli import output
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State
from dwcp.runtime.errors import Exit

_CODES = {"ok": Exit.OK, "warn": Exit.FINDINGS, "crit": Exit.FAILED, "unknown": Exit.UNKNOWN}


def doctor(
    state: State = None,
    as_json: Json = False,
) -> int:
    """Check this machine and this installation: programs, limits, disk, keys, clocks, services.

    Exit code 0: all well; 1: something is worse than it could be; 2: it will not work; 3: unknown.

    Example: dwcp doctor --json
    """
    from dwcp.runtime.diagnosis import examine, worst_of

    env = current()
    findings = examine(env.layout(state), env.variables, clock=env.clock)
    verdict = worst_of(findings)
    rows = [(finding.verdict, finding.what, finding.detail, finding.remedy) for finding in findings]
    table = output.Table(("", "what", "found", "what to do"), rows)
    answer = {"verdict": verdict, "findings": findings}
    output.show(answer, as_json=as_json, text=verdict.upper(), table=table)
    return _CODES[verdict]
