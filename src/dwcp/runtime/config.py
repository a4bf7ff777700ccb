"""Reading configuration: strict, once, into frozen values; the only reader of the environment.

A file becomes one frozen struct or is refused with a sentence that names file
and key. Knows nothing of what the values mean to a service.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import yaml
from msgspec import Meta

from dwcp.runtime.errors import ConfigInvalid

T = TypeVar("T")

FILE_BYTES_MAX = 1_048_576  # no configuration of ours is near it; a wrong file is refused unread
Port = Annotated[int, Meta(ge=1, le=65535)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every configuration shape. A `validate()` method, where present, checks relations."""


class Address(Settings, frozen=True):
    """Where a process listens."""

    host: Annotated[str, Meta(description="IP address to bind")]
    port: Annotated[Port, Meta(description="TCP port")]

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class TlsFiles(Settings, frozen=True):
    """A process's identity for mutual TLS; all three are PEM files."""

    certificate: Annotated[Path, Meta(description="X.509 certificate of this process, PEM")]
    key: Annotated[Path, Meta(description="its private key, PEM, mode 0600")]
    authority: Annotated[Path, Meta(description="certificate of the installation's authority, PEM")]


class ServiceConfig(Settings, frozen=True):
    """What every service needs; a service's own shape extends it."""

    name: Annotated[str, Meta(description="the service's name, also its certificate's common name")]
    data_dir: Annotated[Path, Meta(description="folder for everything this service keeps")]
    genesis: Annotated[Path, Meta(description="the installation's genesis.json")]
    tls: Annotated[TlsFiles, Meta(description="identity for mutual TLS")]
    plain: Annotated[Address | None, Meta(description="plain HTTP listener; none when absent")] = None
    mutual: Annotated[Address | None, Meta(description="mutual TLS HTTP listener; none when absent")] = None
    tokens: Annotated[Path | None, Meta(description="hashed bearer tokens; none accepted when absent")] = None
    sign_key: Annotated[
        Path | None, Meta(description="Ed25519 seed, hex, mode 0600: the ledger identity")
    ] = None
    run_dir: Annotated[
        Path | None, Meta(description="folder for the process's pid file; none when absent")
    ] = None
    testing: Annotated[bool, Meta(description="accept --failpoint; never in production")] = False
    log_level: Annotated[str, Meta(description="debug, info, warning or error")] = "info"
    drain_ms: Annotated[int, Meta(ge=0, description="how long open requests may take at the end, ms")] = 5000

    def validate(self) -> None:
        if self.log_level not in {"debug", "info", "warning", "error"}:
            raise ConfigInvalid(f"log_level: {self.log_level!r} is none of debug, info, warning, error")


class Environment(msgspec.Struct, frozen=True):
    """The few variables that override files and defaults."""

    state: str = ""  # DWCP_STATE: the state folder
    net: str = ""  # DWCP_NET: the loopback network, for example 127.77
    no_color: bool = False  # NO_COLOR
    home: str = ""
    path: str = ""
    sudo_user: str = ""  # SUDO_USER: the person behind sudo, for records


def environment(variables: Mapping[str, str] | None = None) -> Environment:
    """The overrides in force; `variables` defaults to the process's own."""
    source = os.environ if variables is None else variables
    return Environment(
        state=source.get("DWCP_STATE", ""),
        net=source.get("DWCP_NET", ""),
        no_color=bool(source.get("NO_COLOR")),
        home=source.get("HOME", ""),
        path=source.get("PATH", ""),
        sudo_user=source.get("SUDO_USER", ""),
    )


def load(path: Path, shape: type[T]) -> T:
    """The file as `shape`. Raises `ConfigInvalid` naming the file and the key."""
    return parse(_read(path), shape, source=str(path))


def parse(text: str, shape: type[T], *, source: str) -> T:
    """YAML (or JSON) text as `shape`; `source` names it in errors."""
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise ConfigInvalid(f"{source}: not YAML: {_first_line(exc)}") from exc
    return convert(raw, shape, source=source)


def convert(raw: object, shape: type[T], *, source: str) -> T:
    """Plain values as `shape`; unknown keys are refused, naming the nearest known one."""
    for where, key, known in unknown_keys(raw, shape):
        raise ConfigInvalid(f"{source}: {where}: unknown key {key!r}{_nearest(key, known)}")
    try:
        value = msgspec.convert(raw, shape, strict=True, dec_hook=_decode_path)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise ConfigInvalid(f"{source}: {exc}") from exc
    validate = getattr(value, "validate", None)
    if validate is not None:
        try:
            validate()
        except ConfigInvalid as exc:
            raise ConfigInvalid(f"{source}: {exc}") from exc
    return value


def dump(value: object) -> str:
    """The effective configuration as YAML, every default written out."""
    plain = msgspec.to_builtins(value, enc_hook=str)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)


def unknown_keys(raw: object, shape: Any) -> Iterator[tuple[str, str, list[str]]]:
    """(place, key, known keys) for each key of `raw` that `shape` does not have.

    `shape` is a type or one of msgspec's descriptions of a type.
    """
    info = shape if isinstance(shape, msgspec.inspect.Type) else msgspec.inspect.type_info(shape)
    yield from _unknown(raw, info, "top level")


def _unknown(raw: object, info: msgspec.inspect.Type, where: str) -> Iterator[tuple[str, str, list[str]]]:
    if isinstance(info, msgspec.inspect.Metadata):
        yield from _unknown(raw, info.type, where)
    elif isinstance(info, msgspec.inspect.UnionType):
        for option in info.types:
            if isinstance(raw, dict | list) and not isinstance(option, msgspec.inspect.NoneType):
                yield from _unknown(raw, option, where)
    elif isinstance(info, msgspec.inspect.StructType | msgspec.inspect.DataclassType):
        yield from _unknown_fields(raw, info, where)
    elif isinstance(info, msgspec.inspect.VarTupleType | msgspec.inspect.ListType) and isinstance(raw, list):
        for position, item in enumerate(raw):
            yield from _unknown(item, info.item_type, f"{where}[{position}]")
    elif isinstance(info, msgspec.inspect.DictType) and isinstance(raw, dict):
        for key, item in raw.items():
            yield from _unknown(item, info.value_type, f"{where}.{key}")


def _unknown_fields(
    raw: object, info: msgspec.inspect.StructType | msgspec.inspect.DataclassType, where: str
) -> Iterator[tuple[str, str, list[str]]]:
    if not isinstance(raw, dict):
        return
    fields = {field.encode_name: field for field in info.fields}
    for key, item in raw.items():
        if key not in fields:
            yield where, str(key), sorted(fields)
        else:
            place = key if where == "top level" else f"{where}.{key}"
            yield from _unknown(item, fields[key].type, place)


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys are {', '.join(known)}"


def _decode_path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    raise msgspec.ValidationError(f"expected a path, got {value!r}")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise ConfigInvalid(f"{path}: cannot be read: {exc.strerror}") from exc
    if len(data) > FILE_BYTES_MAX:
        raise ConfigInvalid(f"{path}: larger than {FILE_BYTES_MAX} bytes, so it is no configuration file")
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise ConfigInvalid(f"{path}: not UTF-8 text") from exc


def _first_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:200]
