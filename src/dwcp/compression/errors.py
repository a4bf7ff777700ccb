"""What can go wrong with payloads, chunks and compressed streams, said so that the reader can act.

`TransferError` is the root. `status` is the HTTP status with which a service
answers it; a peer's fault and a user's fault are both in the 400s.
"""

from __future__ import annotations

from dwcp.consensus.core.errors import CoreError


class TransferError(CoreError):
    """An error of the data path; its message is a sentence for the person who has to act."""

    status = 400


class UnknownCodec(TransferError):
    """The codec is none of those this release can decode; upgrade the reader or choose another codec."""


class BlockInvalid(TransferError):
    """A compressed block is damaged or was made by a liar; the sender has to send it again."""


class BombRefused(BlockInvalid):
    """A compressed block would have grown beyond the size that its header declares; its sender lies."""


class ContainerInvalid(TransferError):
    """A compressed stream is cut, damaged, reordered or of another version; ask its sender again."""


class ManifestInvalid(TransferError):
    """A manifest breaks a rule of payloads; the message names the entry. Repair the payload, submit again."""


class PayloadRefused(TransferError):
    """A file tree holds something that may not travel; the message names it. Remove it and submit again."""


class PayloadChanged(TransferError):
    """A payload changed while it was read; submit again when nothing writes to it."""

    status = 409


class ChunkerMissing(TransferError):
    """The compiled part of `fastcdc` is missing and its fallback is 100 times slower: reinstall `fastcdc`."""

    status = 500


class ChunkMissing(TransferError):
    """A chunk is not in this store; pull its manifest again."""

    status = 404


class ChunkDamaged(ChunkMissing):
    """A stored chunk no longer has its own hash; it was removed, pull its manifest again."""


class ManifestMissing(TransferError):
    """This store holds no manifest of that root; ask another source."""

    status = 404


class StoreFull(TransferError):
    """The disk under the chunk store is full; free space there and try again."""

    status = 507


class QuotaExceeded(StoreFull):
    """The payload does not fit into what this store may hold; raise its quota or release old payloads."""


class StoreUnusable(TransferError):
    """The chunk store cannot be read or written; check the permissions and the disk of its directory."""

    status = 500


class RequestInvalid(TransferError):
    """A request of the data path is malformed or larger than its limit."""


class SourceFailed(TransferError):
    """A source could not be reached or broke off; another one or another try may succeed."""

    status = 502


class SourceLied(SourceFailed):
    """A source sent bytes that are not what it was asked for; it is not asked again for this payload."""


class ShipFailed(TransferError):
    """No source could deliver the payload; check that one of its agents is up and still holds it."""

    status = 502


class CodecLied(TransferError):
    """A codec library gave back other bytes than it was given: do not use this release of it."""

    status = 500


class MeasurementInvalid(TransferError):
    """Measurements of codecs cannot be read or made; the message names what is missing or damaged."""


class ModelInvalid(TransferError):
    """The codec selector's model cannot be used; the table answers until a sound one is installed."""
