"""Where everything of one installation lies. Paths only; nothing is read or made here except by `ensure`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dwcp.runtime.config import Environment, TlsFiles

CHECKOUT = Path(__file__).resolve().parents[3]
SYSTEM_STATE = Path("/var/lib/dwcp")


@dataclass(frozen=True, slots=True)
class Layout:
    """The state folder of one installation."""

    root: Path

    @property
    def cluster(self) -> Path:
        return self.root / "cluster.yaml"

    @property
    def genesis(self) -> Path:
        return self.root / "genesis.json"

    @property
    def authority(self) -> Path:
        return self.root / "authority"

    @property
    def authority_certificate(self) -> Path:
        return self.authority / "ca.crt"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens" / "tokens.json"

    @property
    def operator_token(self) -> Path:
        return self.root / "tokens" / "operator.token"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def conf(self) -> Path:
        return self.root / "conf"

    def config(self, service: str) -> Path:
        return self.conf / f"{service}.yaml"

    def data(self, service: str) -> Path:
        return self.root / "data" / service

    def log(self, service: str) -> Path:
        return self.logs / f"{service}.log"

    def keys(self, service: str) -> Path:
        return self.root / "keys" / service

    def sign_key(self, service: str) -> Path:
        return self.keys(service) / "sign.key"

    def tls(self, service: str) -> TlsFiles:
        folder = self.keys(service)
        return TlsFiles(
            certificate=folder / "tls.crt", key=folder / "tls.key", authority=self.authority_certificate
        )

    def pid_file(self, service: str) -> Path:
        return self.run / f"{service}.pid"


def find(option: Path | None, env: Environment) -> Layout:
    """The installation meant: the option, DWCP_STATE, root's /var/lib/dwcp, or `.dwcp` in the checkout."""
    if option is not None:
        return Layout(option.expanduser().absolute())
    if env.state:
        return Layout(Path(env.state).expanduser().absolute())
    if os.geteuid() == 0:
        return Layout(SYSTEM_STATE)
    return Layout(CHECKOUT / ".dwcp")


def ensure(folder: Path, mode: int = 0o700) -> Path:
    """Makes the folder, and what is missing above it, with `mode`; an existing one is left as it is."""
    if not folder.is_dir():
        if not folder.parent.exists():
            ensure(folder.parent, mode)
        folder.mkdir(mode=mode, exist_ok=True)
    return folder
