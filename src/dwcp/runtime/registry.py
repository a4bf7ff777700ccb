"""The models of an installation on disk: files by digest, signed by the host, and one state for each name.

    models/NAME/DIGEST/{manifest.json, weights.safetensors, signature}
    models/NAME/state.json      the lifecycle (`dwcp.models.lifecycle`), replaced atomically under a lock

A model that ships with the program is pinned by its digest in the code and needs no signature.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dwcp.consensus.core.machine import Signer
from dwcp.models import artefact
from dwcp.models.artefact import Artefact, Forward, Made, ModelRefused
from dwcp.models.lifecycle import Lifecycle
from dwcp.runtime.durable import replace_private
from dwcp.runtime.errors import RuntimeFault
from dwcp.runtime.layout import ensure

MANIFEST, WEIGHTS, SIGNATURE = "manifest.json", "weights.safetensors", "signature"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class RegistryDamaged(RuntimeFault):
    """A file of the model registry cannot be read: restore it, or remove the folder that is named."""


class NoSuchModel(RuntimeFault):
    """The registry holds no such model: `dwcp model list` shows which there are."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a program expects of a model: its name, the features it computes, how it is evaluated."""

    name: str
    schema: str
    forward: Forward


class Registry:
    """One kind's models in one installation. `public` is the key whose signatures count."""

    def __init__(self, folder: Path, kind: Kind, *, public: bytes) -> None:
        self._folder = folder / kind.name
        self._kind = kind
        self._public = public

    @property
    def state_file(self) -> Path:
        return self._folder / "state.json"

    def stamp(self) -> tuple[int, int] | None:
        """Another one after each change, whoever made it; None before the first. Cheap: for whoever follows."""
        try:
            status = self.state_file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def state(self) -> Lifecycle:
        """The lifecycle as it stands; a fresh one before the first change. Raises `RegistryDamaged`."""
        path = self.state_file
        try:
            return msgspec.json.decode(path.read_bytes(), type=Lifecycle)
        except FileNotFoundError:
            return Lifecycle()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise RegistryDamaged(f"{path}: cannot be read as a model state: {exc}; restore it") from exc

    def digests(self) -> tuple[str, ...]:
        """Every model held, ascending."""
        if not self._folder.is_dir():
            return ()
        return tuple(sorted(path.name for path in self._folder.iterdir() if _DIGEST.fullmatch(path.name)))

    def resolve(self, prefix: str) -> str:
        """The one digest that begins so; raises `NoSuchModel`."""
        found = [digest for digest in self.digests() if digest.startswith(prefix)]
        if len(found) != 1 or not prefix:
            several = f"{len(found)} models begin with" if found else "no model begins with"
            raise NoSuchModel(f"{several} {prefix!r}: `dwcp model list` shows the digests")
        return found[0]

    def admit(self, made: Made, *, signer: Signer) -> Artefact:
        """Check the model, keep its files, sign them; admitting one twice changes nothing."""
        checked = artefact.load(
            made, name=self._kind.name, schema=self._kind.schema, forward=self._kind.forward
        )
        home = self._folder / checked.digest
        if not (home / SIGNATURE).exists():
            ensure(home)
            replace_private(home / WEIGHTS, made.weights)
            replace_private(home / MANIFEST, made.manifest)
            replace_private(
                home / SIGNATURE, artefact.sign(made.manifest, signer)
            )  # last: its presence says whole
        return checked

    def load(self, digest: str) -> Artefact:
        """The model; raises `ModelRefused` where anything about it is not as it was admitted."""
        home = self._folder / digest
        try:
            manifest = (home / MANIFEST).read_bytes()
            weights = (home / WEIGHTS).read_bytes()
            signature = (home / SIGNATURE).read_bytes()
        except OSError as exc:
            raise ModelRefused(f"the model is refused: {exc.strerror}: {exc.filename}") from exc
        if artefact.digest_of(manifest) != digest:
            raise ModelRefused(f"the model is refused: {home / MANIFEST} is not what its folder says")
        if not artefact.signature_holds(manifest, signature, self._public):
            raise ModelRefused(f"the model is refused: {home} is not signed by this installation")
        return artefact.load(
            Made(manifest, weights),
            name=self._kind.name,
            schema=self._kind.schema,
            forward=self._kind.forward,
        )

    def change(self, step: Callable[[Lifecycle], Lifecycle]) -> Lifecycle:
        """Apply one step; whatever it raises leaves the state as it was. One change at a time."""
        with self._alone():
            changed = step(self.state())
            text = msgspec.json.format(msgspec.json.encode(changed, order="deterministic"), indent=2)
            replace_private(self.state_file, text + b"\n")
        return changed

    @contextmanager
    def _alone(self) -> Iterator[None]:
        ensure(self._folder)
        lock = os.open(self._folder / ".lock", os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(lock, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
