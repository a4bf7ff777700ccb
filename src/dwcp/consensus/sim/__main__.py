"""`python -m dwcp.consensus.sim`: the simulator without the rest of the command line."""

from __future__ import annotations

import argparse
import json
import sys

from dwcp.consensus.sim.run import BUG_SEEDS, SEEDS, SLOTS_MIN, BadRequest, SimRequest, print_progress, run


def seed_range(text: str) -> tuple[int, int]:
    """`FIRST:AFTER_LAST`, or one seed."""
    first, _, last = text.partition(":")
    try:
        return (int(first), int(last)) if last else (int(first), int(first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of seeds; write 0:1000") from None


def main() -> int:
    parser = argparse.ArgumentParser(prog="dwcp sim", description=__doc__)
    parser.add_argument("--engine", default="probft")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--seeds", type=seed_range, metavar="FIRST:AFTER_LAST")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--slots", type=int, default=SLOTS_MIN, help="positions each seed commits at least")
    parser.add_argument("--bug", metavar="NAME|all")
    parser.add_argument("--verbose", action="store_true", help="tell the story of each seed")
    parser.add_argument("--json", action="store_true", help="the report as the last line")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    options["seeds"] = options["seeds"] or (BUG_SEEDS if options["bug"] else SEEDS)
    try:
        report = run(SimRequest(**options), print_progress)
    except BadRequest as exc:
        sys.stderr.write(f"{exc}\n")
        return 64
    text = json.dumps(report.as_json(), indent=None if as_json else 2)
    sys.stdout.write(text + "\n")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
