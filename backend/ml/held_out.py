"""Makes the list of held-out blocks from a folder of corpora: `python3 held_out.py FOLDER`.

The list holds truncated hashes of 4 KiB blocks, nothing else; training refuses files that share one.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import environment

if __name__ == "__main__":
    environment.enter("held_out")


def main() -> int:
    from dwcp.compression import model_shipped
    from dwcp.compression.corpus_heldout import BlockList
    from dwcp.compression.errors import MeasurementInvalid

    if len(sys.argv) != 2:
        print("usage: held_out.py FOLDER", file=sys.stderr)
        return 64
    try:
        blocks = BlockList.of(Path(sys.argv[1]))
    except MeasurementInvalid as failed:
        print(f"held_out: {failed}", file=sys.stderr)
        return 2
    path = environment.CHECKOUT / "src" / "dwcp" / "compression" / "artefacts" / model_shipped.HELD_OUT
    path.write_bytes(blocks.encode())
    print(f"{len(blocks)} blocks: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
