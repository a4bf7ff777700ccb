"""The model card: all it says is read from the model and its table; the log of corpora runs is kept."""

from __future__ import annotations

from dwcp.compression.oracle import Table
from dwcp.compression.train_data import RATES_BPS
from dwcp.compression.train_judging import figure
from dwcp.models.artefact import Artefact

RUNS = "## Runs on the held-out corpora"
_ORDER = ("model", "table", "zstd-3")
_NO_RUNS = f"""{RUNS}

Every run of `python benchmarks/bench_selector.py --corpus ../shared/data/corpora --json` is noted here, so that one
can see how often they were looked at.

| model | regret | p95 | table | zstd-3 | worse than table | selection p50 |
|---|---|---|---|---|---|---|
"""


def write(facts: Artefact, table: Table, *, old: str = "") -> str:
    """The page. `table`: the measurements; `old`: the page so far, whose log of runs is taken over."""
    runs = old[old.index(RUNS) :] if RUNS in old else _NO_RUNS
    figures = facts.manifest.figures
    protocols = sorted({name.split("/")[1] for name in figures if name.startswith("policy/")})
    parts = [_head(facts, table), *(_protocol(figures, name) for name in protocols), runs]
    return "\n".join(parts).rstrip() + "\n"


def _head(facts: Artefact, table: Table) -> str:
    manifest = facts.manifest
    figures = manifest.figures
    counts = {name.removeprefix("kind/"): n for name, n in figures.items() if name.startswith("kind/")}
    kinds = ", ".join(f"{kind} {count:.0f}" for kind, count in sorted(counts.items()))
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(table.libraries.items()))
    margins = ", ".join(f"{margin:g}" for margin in facts.weights["margins"].tolist())
    pieces = figures["measurements"]
    rho = float(facts.weights["rho"][0])
    return f"""# Model card: the codec selector

<!-- Made by `cd backend/ml && python3 models/compression_selector.py`; only the log at the end is written by hand. -->

Predicts how far each codec would shrink some bytes and how long it would take, from {len(manifest.bounds)} numbers
about a sample; what that is worth on a link is arithmetic (`src/dwcp/compression/costs.py`). Three small networks,
taught by trees.

| | |
|---|---|
| model | BLAKE3 `{facts.digest}`, of its manifest |
| weights | BLAKE3 `{manifest.weights}` |
| measurement table | BLAKE3 `{manifest.trained_on["measurements"]}` |
| training code | BLAKE3 `{manifest.trained_on["code"]}` |
| trained on | {pieces:.0f} pieces ({figures["megabytes"]} MB) of {figures["groups"]:.0f} groups of files |
| kinds | {kinds} |
| measured with | {table.processor}, {libraries} |
| margins over the table | {margins} (log), by link as below |
| shared by neighbours | {rho:.2f} of the errors' variance |

Made for: choosing a codec for blocks of 64 KiB to 1 MiB on links of 1 Mbit/s to 10 Gbit/s. Not for: ratios of single
small messages, archives that are kept (nothing here weighs storage), data with secrets beside an attacker's bytes.

Regret is how much longer a bulk transfer takes than with the best of the oracle's 19 codecs for each piece, in per
cent, geometric mean up to 1 Gbit/s; choices cost nothing here and nothing is raced. `benchmarks/bench_selector.py`
tells it for whole streams with all costs. Accuracy is how often the label is the oracle's; it says nothing.
"""


def _protocol(figures: dict[str, float], name: str) -> str:
    title = {"A": "five folds, groups of files whole", "B": "whole kinds left out"}.get(name, name)
    rates = [f"{rate / 1e6:.0f}" for rate in RATES_BPS]
    prefix = f"policy/{name}/"
    policies = sorted(
        {key.removeprefix(prefix).rpartition("/")[0] for key in figures if key.startswith(prefix)},
        key=lambda policy: (_ORDER.index(policy) if policy in _ORDER else len(_ORDER), policy),
    )
    lines = [
        f"## Protocol {name}: {title}\n",
        f"| policy | regret | p95 | {' | '.join(rates)} Mbit/s |",
        "|---" * (3 + len(rates)) + "|",
    ]
    for policy in policies:
        told = {what: 100 * figures[figure(name, policy, what)] for what in ("gmean", "p95", *rates)}
        links = " | ".join(f"{told[rate]:.1f}" for rate in rates)
        lines.append(f"| {policy} | {told['gmean']:.2f} | {told['p95']:.1f} | {links} |")
    lines.append(
        f"\nWorse than the table by over 2 %: {figures[f'worse_than_table_{name}']:.1%} of decisions. "
        f"Label accuracy: {figures[f'label_accuracy_{name}']:.0%}.\n"
    )
    return "\n".join(lines)
