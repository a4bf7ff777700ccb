"""Trains the codec selector for real: measures pieces of this host's files, learns, writes model and card.

    cd backend/ml && python3 models/compression_selector.py [--quick]

Measuring is resumable and takes `--minutes` at most; model, measurements and card go to `--out`, by default
`.dwcp/models/compression-selector` below the checkout. `--quick` does all of it in about two minutes, into a
temporary folder. `--shipped` measures nothing: it makes the shipped model again, bit by bit, from the committed table,
and pins its digest in the code.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import environment

if __name__ == "__main__":
    environment.enter("models.compression_selector")

ARTEFACTS = environment.CHECKOUT / "src" / "dwcp" / "compression" / "artefacts"
OUT = environment.CHECKOUT / ".dwcp" / "models" / "compression-selector"
PINNED = environment.CHECKOUT / "src" / "dwcp" / "compression" / "model_shipped.py"
CARD = environment.CHECKOUT / "docs" / "models" / "compression-selector.md"
QUICK_SECONDS = 45.0
QUICK_SCALE = 0.25


def main() -> int:
    from dwcp.compression.errors import TransferError

    arguments = parse()
    try:
        return train(arguments)
    except TransferError as failed:
        print(f"compression_selector: {failed}", file=sys.stderr)
        return 2
    except OSError as failed:
        print(f"compression_selector: {failed.filename}: {failed.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("compression_selector: interrupted; the same command goes on", file=sys.stderr)
        return 75


def train(arguments: argparse.Namespace) -> int:
    from dwcp.compression import model_shipped, oracle, train, train_card

    begun = time.monotonic()
    folder = output(arguments)
    folder.mkdir(parents=True, exist_ok=True)
    table = model_shipped.MEASUREMENTS
    packed = model_shipped.artefact(table) if arguments.shipped else measured(arguments, folder)
    trained = train.from_bytes(packed, seed=arguments.seed, quick=arguments.quick, report=say)
    (folder / model_shipped.MEASUREMENTS).write_bytes(packed)
    (folder / model_shipped.MANIFEST).write_bytes(trained.made.manifest)
    (folder / model_shipped.WEIGHTS).write_bytes(trained.made.weights)
    if folder == ARTEFACTS:
        pin(trained.made.digest)
    card = CARD if folder == ARTEFACTS else folder / CARD.name
    old = card.read_text(encoding="utf-8") if card.exists() else ""
    card.write_text(train_card.write(trained.facts, oracle.unpack_table(packed), old=old), encoding="utf-8")
    say(f"written to {folder}; the card is {card}")
    say(f"digest {trained.made.digest}, {time.monotonic() - begun:.0f} s")
    return 0


def pin(digest: str) -> None:
    """Writes which model is this release's into the code that loads it."""
    text = PINNED.read_text(encoding="utf-8")
    changed, count = re.subn(r'^DIGEST = "[0-9a-f]*"$', f'DIGEST = "{digest}"', text, flags=re.MULTILINE)
    if count != 1:
        raise AssertionError(f"{PINNED} has no line DIGEST: pin {digest} by hand")
    PINNED.write_text(changed, encoding="utf-8")


def output(arguments: argparse.Namespace) -> Path:
    if arguments.out:
        return Path(arguments.out).resolve()
    if arguments.shipped:
        return ARTEFACTS
    return Path(tempfile.mkdtemp(prefix="dwcp-model-")) if arguments.quick else OUT


def measured(arguments: argparse.Namespace, folder: Path) -> bytes:
    """Measures this host's files; the lines so far are kept beside the model."""
    from dwcp.compression import corpus, model_shipped, oracle_campaign, train

    least = train.MEASUREMENTS_MIN  # on a slow or busy host that takes longer than was asked for
    scale = QUICK_SCALE if arguments.quick else arguments.scale
    seconds = QUICK_SECONDS if arguments.quick else arguments.minutes * 60
    lines = Path(arguments.lines) if arguments.lines else folder / "measurements.jsonl"
    lines.touch()  # a place that cannot be written is told before anything is looked for
    say(f"measuring pieces of this host's files, {seconds:.0f} s at most")
    pieces = corpus.pieces(model_shipped.held_out(), scale=scale, seed=arguments.seed)
    rows, complete = oracle_campaign.run(lines, pieces, seconds_max=seconds, least=least, report=progress)
    if not complete:
        say(f"time is over after {len(rows)} pieces; the same command goes on with {lines}")
    return oracle_campaign.table(rows)


def progress(done: int, new: int) -> None:
    if done % 25 == 0:
        say(f"{done} pieces, {new} of them measured now")


def say(text: str) -> None:
    print(text, flush=True)


def above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small run of everything, into a temporary folder"
    )
    parser.add_argument("--shipped", action="store_true", help="from the committed table, without measuring")
    parser.add_argument("--minutes", type=above_zero, default=8, help="how long to measure")
    parser.add_argument("--scale", type=above_zero, default=2.0, help="1 is about 270 pieces")
    parser.add_argument("--lines", help="file of measurements so far")
    parser.add_argument("--out", help="folder for model and card; default: .dwcp/models/compression-selector")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
