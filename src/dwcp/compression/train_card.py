"""The model card: everything it says is read from the manifest; the log of runs on held-out corpora is kept."""

from __future__ import annotations

from typing import Any

from dwcp.compression.model import Manifest

RUNS = "## Runs on the held-out corpora"
_NO_RUNS = f"""{RUNS}

Every run of `python benchmarks/bench_selector.py --corpus ../shared/data/corpora --json` is noted here, so that one
can see how often they were looked at.

| model | regret | p95 | table | zstd-3 | worse than table | selection p50 |
|---|---|---|---|---|---|---|
"""


def write(manifest: Manifest, *, old: str = "") -> str:
    """The page. `old`: the page so far, whose log of runs is taken over."""
    runs = old[old.index(RUNS) :] if RUNS in old else _NO_RUNS
    parts = [_head(manifest), *(_protocol(manifest, name) for name in manifest.training["protocols"]), runs]
    return "\n".join(parts).rstrip() + "\n"


def _head(manifest: Manifest) -> str:
    facts = manifest.training
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(facts["kinds"].items()))
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(manifest.libraries.items()))
    return f"""# Model card: the codec selector

<!-- Made by `cd backend/ml && python3 models/compression_selector.py`; only the log at the end is written by hand. -->

Predicts how far each codec would shrink some bytes and how long it would take, from {len(manifest.features)} numbers
about a sample; what that is worth on a link is arithmetic (`src/dwcp/compression/costs.py`). Three small networks,
taught by trees.

| | |
|---|---|
| weights | BLAKE3 `{manifest.weights_digest}` |
| measurement table | BLAKE3 `{manifest.table_digest}` |
| training code | BLAKE3 `{manifest.code_digest}` |
| trained on | {facts["measurements"]} pieces ({facts["megabytes"]} MB) of {facts["groups"]} groups of files |
| kinds | {kinds} |
| measured with | {manifest.processor}, {libraries} |
| margin over the table | {manifest.margin:.2f}, and {manifest.caution:.2f} standard deviations |
| shared by neighbours | {manifest.rho:.2f} of the errors' variance |

Made for: choosing a codec for blocks of 64 KiB to 1 MiB on links of 1 Mbit/s to 10 Gbit/s. Not for: ratios of single
small messages, archives that are kept (nothing here weighs storage), data with secrets beside an attacker's bytes.

Regret is how much longer a bulk transfer takes than with the best of the oracle's 19 codecs for each piece, in per
cent, geometric mean up to 1 Gbit/s; choices cost nothing here and nothing is raced. `benchmarks/bench_selector.py`
tells it for whole streams with all costs. Accuracy is how often the label is the oracle's; it says nothing.
"""


def _protocol(manifest: Manifest, name: str) -> str:
    figures: dict[str, Any] = manifest.training["protocols"][name]  # Any: figures for people
    title = {"A": "five folds, groups of files whole", "B": "whole kinds left out"}.get(name, name)
    rates = " | ".join(f"{rate / 1e6:.0f}" for rate in manifest.rates_bps)
    lines = [
        f"## Protocol {name}: {title}\n",
        f"| policy | regret | p95 | {rates} Mbit/s |",
        "|---" * (3 + len(manifest.rates_bps)) + "|",
    ]
    for policy, told in figures["policies"].items():
        links = " | ".join(f"{value:.1f}" for value in told["per_link"])
        lines.append(f"| {policy} | {told['gmean']:.2f} | {told['p95']:.1f} | {links} |")
    lines.append(
        f"\nWorse than the table by over 2 %: {figures['worse_than_table_share']:.1%} of decisions. "
        f"Label accuracy: {figures['label_accuracy']:.0%}.\n"
    )
    return "\n".join(lines)
