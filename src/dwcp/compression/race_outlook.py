"""What each codec would cost as the next trial of a race: floats in lists, one for each of `codecs.CODECS`.

A race asks this several times for a block, while the processor should be packing; for a dozen codecs plain floats
take a third of what arrays take. The arithmetic is that of `costs_predicted.stages_of` and `costs`, and a test holds
the two together; where more than time counts the scores come from there. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwcp.compression.costs import HEADER_BYTES, Mode, Stages, Terms
from dwcp.compression.model import PACKERS

Array = NDArray[np.float64]
Row = list[float]


@dataclass(frozen=True, slots=True)
class Seen:
    """What trials have shown: bytes that would be sent, by place, and CPU seconds that all of them took."""

    sent_bytes: dict[int, int]
    spent_s: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """Seconds of the stages, bytes sent, core-seconds, T, and what is made small; each [C]."""

    terms: Terms
    compress: Row
    send: Row
    decompress: Row
    sent_bytes: Row
    cpu: Row
    seconds: Row
    scored: Row

    def failed(self, best: int) -> Row:
        """[C] scores if each was tried in vain and `best` is sent after all."""
        count = len(self.compress)
        send, decompress, sent = (
            [row[best]] * count for row in (self.send, self.decompress, self.sent_bytes)
        )
        return _scored(self.terms, self.compress, send, decompress, sent, self.cpu)[1]


def outlook(logs: Array, size: int, *, terms: Terms, seen: Seen) -> Outlook:
    """`logs` [VALUES] for this host; what was spent on trials is spent in any case."""
    link = terms.link
    per_byte, sender = 8.0 / link.rate_bps, link.sender_share * link.sender_cores
    receiver = link.receiver_share * link.receiver_cores
    values: Row = np.exp(logs).tolist()
    cpu, sent, decompress = [seen.spent_s], [float(size + HEADER_BYTES)], [0.0]
    compress = [seen.spent_s / sender]
    for at in range(PACKERS):
        packed = size / values[at]
        unpack_s = size * values[at + 2 * PACKERS] if packed < size else 0.0
        known = seen.sent_bytes.get(at + 1)
        if known is None:
            busy_s = seen.spent_s + size * values[at + PACKERS]
            sent.append(min(packed, size) + HEADER_BYTES)
        else:
            busy_s = seen.spent_s
            sent.append(known)
        compress.append(busy_s / sender)
        cpu.append(busy_s + unpack_s)
        decompress.append(unpack_s / receiver)
    send = [each * per_byte for each in sent]
    seconds, scored = _scored(terms, compress, send, decompress, sent, cpu)
    return Outlook(terms, compress, send, decompress, sent, cpu, seconds, scored)


def _scored(
    terms: Terms, compress: Row, send: Row, decompress: Row, sent_bytes: Row, cpu: Row
) -> tuple[Row, Row]:
    if terms.mode is Mode.BULK and terms.plain:
        fixed = terms.link.latency_s + terms.link.block_overhead_s
        seconds = [fixed + max(each) for each in zip(compress, send, decompress, strict=True)]
        return seconds, seconds
    parts = Stages(*(np.array(row) for row in (compress, send, decompress, sent_bytes, cpu)))
    taken, made_small = terms.score(parts)
    return taken.tolist(), made_small.tolist()
