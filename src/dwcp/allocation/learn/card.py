"""The model card of a placer: everything it says is read from the manifest."""

from __future__ import annotations

from dwcp.allocation.learn.fleets import COUNTS
from dwcp.allocation.policies.guarded import NODES
from dwcp.models.artefact import Artefact, Manifest


def write(model: Artefact) -> str:
    """The page."""
    manifest = model.manifest
    return (
        "\n".join(
            [_head(model), _verdict(manifest), *_searched(manifest), _fleets(manifest), _ranges(manifest)]
        ).rstrip()
        + "\n"
    )


def _head(model: Artefact) -> str:
    manifest = model.manifest
    facts, inputs = manifest.figures, manifest.trained_on
    numbers = sum(array.size for name, array in model.weights.items() if not name.startswith("base."))
    return f"""# Model card: the placer

<!-- Made by `dwcp allocate train`, which writes it beside the model. -->

Ranks the nodes that could run a workload, and may let it wait: a bounded residual of {numbers} numbers on a tuned rule,
taught by MADDPG (docs/allocation/training.md). Where its inputs leave the ranges below, the rule decides.

| | |
|---|---|
| model | BLAKE3 `{model.digest}` |
| weights | BLAKE3 `{manifest.weights}` |
| made by | `{inputs["command"]}` |
| stands on | {inputs["base"]}, as it was tuned |
| training windows | BLAKE3 `{inputs["train"]}` |
| validation windows | BLAKE3 `{inputs["validation"]}` |
| updates, decisions | {facts.get("updates", 0):.0f}, {facts.get("decisions", 0):.0f} |
| information | {"half of the windows partial, half full" if facts["stale"] else "full"} |
| seconds of the last run | {facts["train_seconds"]:.0f} |

Made for: fleets of up to {manifest.bounds[NODES][1]:.0f} nodes at a few sites, loads of 0.7 to 1.1.
Not for: gangs, affinity, GPUs. All training streams are generated; priorities, tenants, data,
bandwidth and storage are synthetic.
"""


def _verdict(manifest: Manifest) -> str:
    facts = manifest.figures
    low, high = facts["validation_difference_low"], facts["validation_difference_high"]
    word = "cheaper" if high < 0 else "ties with it"
    if facts["validation_difference"] == 0:
        word = "it is the rule: nothing that was learned beat it"
    row = " | ".join(
        [
            f"{facts['rule_cost']:.2f}",
            f"{facts['validation_cost']:.2f}",
            f"{facts['validation_difference']:+.2f}",
            f"{low:+.2f} … {high:+.2f}",
            word,
        ]
    )
    return f"""## Validation

Dollars per window. The best of all segments was chosen on these windows, so that its interval flatters:
what may be claimed stands in docs/allocation/results.md.

| the rule | the model | difference | 95 % interval | |
|---|---|---|---|---|
| {row} |
"""


def _searched(manifest: Manifest) -> list[str]:
    """What the search before the gradient came to; nothing where there was none."""
    facts = manifest.figures
    if "searched_before" not in facts:
        return []
    kept = "kept" if facts["searched_kept"] else "dropped: the interval does not exclude 0"
    row = " | ".join(
        [
            f"{facts['searched_before']:.2f}",
            f"{facts['searched_difference']:+.2f}",
            f"{facts['searched_low']:+.2f} … {facts['searched_high']:+.2f}",
            kept,
        ]
    )
    return [
        f"""## What waiting is worth

Searched on whole windows in {facts["generations"]:.0f} generations before the gradient, below the network;
judged on the same validation windows, dollars per window.

| the rule without it | difference | 95 % interval | |
|---|---|---|---|
| {row} |
"""
    ]


def _fleets(manifest: Manifest) -> str:
    facts = manifest.figures
    lines = [
        f"| {count} | {facts[f'nodes_{count}_rule']:.2f} | {facts[f'nodes_{count}_difference']:+.2f} "
        f"| {facts[f'nodes_{count}_low']:+.2f} … {facts[f'nodes_{count}_high']:+.2f} |"
        for count in COUNTS
        if f"nodes_{count}_rule" in facts
    ]
    return "\n".join(
        [
            "## Larger fleets\n",
            "Trained on 8 to 16 nodes, tried on more: served up to the last size at which the interval's upper end",
            "is at most 2 % of the rule's cost.\n",
            "| nodes | the rule | difference | 95 % interval |",
            "|---|---|---|---|",
            *lines,
            "",
        ]
    )


def _ranges(manifest: Manifest) -> str:
    rows = [f"| {name} | {low:.3f} | {high:.3f} |" for name, (low, high) in sorted(manifest.bounds.items())]
    return "\n".join(
        ["## Ranges in which it decides\n", "| feature | from | to |", "|---|---|---|", *rows, ""]
    )
