"""The README's two commands in a fresh clone, as root and as an ordinary user, with nothing else changed.

Slow: each case makes an environment from the package index. Run with `make accept`.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_STATE = Path("/var/lib/dwcp")
COMMAND_SECONDS = 900
# Their own modes, and those of everything directly in them, stay as they are.
PLACES = ("/", "/etc", "/home", "/opt", "/root", "/usr", "/usr/local", "/var", "/var/lib", "/var/log")
PASSED_ON = ("PATH", "LANG", "PIP_INDEX_URL", "PIP_CERT", "PIP_FIND_LINKS", "SSL_CERT_FILE", "HTTPS_PROXY")

pytestmark = [
    pytest.mark.accept,
    pytest.mark.process,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not (ROOT / ".git").exists(), reason="enable with: a checkout made by `git clone`, not an archive"
    ),
]


@dataclass(frozen=True)
class Resident:
    """Somebody with a clone. `account` is "" for whoever runs the tests."""

    account: str
    home: Path
    net: str
    state: Path | None = None

    @property
    def checkout(self) -> Path:
        return self.home / "dwcp"

    @property
    def is_ordinary(self) -> bool:
        return bool(self.account) or os.geteuid() != 0

    def run(self, *command: str, at: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command as this resident, in an environment of its own; output and errors together."""
        argv = list(command)
        if self.account:
            argv = ["setpriv", "--reuid", self.account, "--regid", self.account, "--clear-groups", *argv]
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= {"HOME": str(self.home), "DWCP_NET": self.net, "NO_COLOR": "1"}
        if self.account:  # the tests' own Python may be out of this account's reach
            environment["PATH"] = "/usr/local/bin:/usr/bin:/bin"
        if self.state is not None:
            environment["DWCP_STATE"] = str(self.state)
        return subprocess.run(
            argv,
            cwd=at or self.checkout,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def clone(self) -> None:
        (self.home / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")  # the source may be another's
        done = self.run("git", "clone", "-q", str(ROOT), str(self.checkout), at=self.home)
        assert done.returncode == 0, done.stdout


@contextmanager
def account(name: str, home: Path) -> Iterator[None]:
    """A user of this machine for the time of a test."""
    made = subprocess.run(
        ["useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh", name],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"enable with: a machine on which `useradd` works ({made.stderr.strip()})")
    try:
        shutil.chown(home, name, name)
        yield
    finally:
        subprocess.run(["userdel", name], capture_output=True, check=False)


@contextmanager
def resident(*, ordinary: bool, net: str) -> Iterator[Resident]:
    """A home with a fresh clone in it; afterwards nothing of it is left."""
    home = Path(tempfile.mkdtemp(prefix="dwcp-clone-"))
    own_state = os.geteuid() == 0 and not ordinary and not SYSTEM_STATE.exists()
    name = f"dwcpt{os.getpid() % 100_000}" if ordinary and os.geteuid() == 0 else ""
    state = home / "state" if SYSTEM_STATE.exists() and os.geteuid() == 0 and not name else None
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        if name:
            stack.enter_context(account(name, home))
        someone = Resident(name, home, net, state)
        someone.clone()
        try:
            yield someone
        finally:
            someone.run("make", "down")
            environment = (someone.checkout / ".venv").resolve()
            if environment.is_relative_to("/opt/dwcp/envs"):
                shutil.rmtree(environment, ignore_errors=True)
            if own_state:
                shutil.rmtree(SYSTEM_STATE, ignore_errors=True)


def modes() -> dict[Path, tuple[int, int, int]]:
    """Mode and owner of every watched place and what is directly in it. What cannot be seen is left out."""
    found: dict[Path, tuple[int, int, int]] = {}
    for place in map(Path, PLACES):
        try:
            paths = [place, *place.iterdir()]
        except OSError:
            continue
        for path in paths:
            try:
                status = path.lstat()
            except OSError:
                continue
            if not stat.S_ISLNK(status.st_mode):
                found[path] = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
    return found


def changed(
    before: Mapping[Path, tuple[int, int, int]], after: Mapping[Path, tuple[int, int, int]]
) -> list[str]:
    """What is still there with another mode or owner; the product's own folders may differ."""
    own = {Path("/opt/dwcp"), SYSTEM_STATE}
    return [
        f"{path}: {before[path]} → {after[path]}"
        for path in sorted(before.keys() & after.keys())
        if before[path] != after[path] and path not in own
    ]


def processes_of(someone: Resident) -> list[str]:
    """Command lines that speak of the clone or its state."""
    state = someone.state or (someone.checkout if someone.is_ordinary else SYSTEM_STATE)
    words = [str(someone.checkout), str(state)]
    found = []
    for process in psutil.process_iter(["cmdline", "pid"]):
        line = " ".join(process.info["cmdline"] or [])
        if any(word in line for word in words) and process.info["pid"] != os.getpid():
            found.append(line)
    return found


def check_readme_commands(someone: Resident) -> None:
    """`make up` on a bare clone, again, and `make down`."""
    before = modes()
    first = someone.run("make", "up")
    assert first.returncode == 0, first.stdout
    assert "receipt verified" in first.stdout
    assert "every hash agrees with the source" in first.stdout

    again = someone.run("make", "up")
    assert again.returncode == 0, again.stdout
    assert "bootstrap: making" not in again.stdout, "the environment was made twice"
    assert "dwcp-manager" in again.stdout, "it does not say what runs"

    running = processes_of(someone)
    down = someone.run("make", "down")
    assert down.returncode == 0, down.stdout
    assert len(running) >= 11, running
    assert processes_of(someone) == []
    assert changed(before, modes()) == []
    dirty = someone.run("git", "status", "--porcelain")
    assert dirty.stdout == "", f"the commands changed the checkout: {dirty.stdout}"


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="enable with: run as root")
def test_root_first_and_then_an_ordinary_user() -> None:
    """Goal: nobody's first use spoils another's. Method: both commands as root, then as a throw-away user."""
    base = 16 + os.getpid() % 200
    with resident(ordinary=False, net=f"127.{base}") as root:
        check_readme_commands(root)
        with resident(ordinary=True, net=f"127.{base + 1}") as user:
            check_readme_commands(user)


@pytest.mark.skipif(
    os.geteuid() == 0, reason="enable with: run as an ordinary user (root runs the other one)"
)
def test_an_ordinary_user() -> None:
    """Goal: no right of root is needed. Method: both commands in a clone below a home of its own."""
    with resident(ordinary=True, net=f"127.{16 + os.getpid() % 200}") as user:
        check_readme_commands(user)


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="enable with: run as root")
def test_a_user_in_roots_checkout_hears_why_not() -> None:
    """Goal: sharing a checkout ends in a sentence. Method: root makes the environment, a user ups."""
    base = 16 + os.getpid() % 200
    with resident(ordinary=False, net=f"127.{base}") as root:
        prepared = root.run("make", "environment")
        assert prepared.returncode == 0, prepared.stdout
        root.home.chmod(0o755)
        with resident(ordinary=True, net=f"127.{base + 1}") as user:
            done = user.run("make", "up", at=root.checkout)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout, done.stdout
    assert "make a clone of your own" in done.stdout, done.stdout


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="enable with: run as root")
def test_root_first_in_a_users_checkout() -> None:
    """Goal: what root leaves behind blocks nobody. Method: root makes the environment in a user's clone."""
    base = 16 + os.getpid() % 200
    with (
        resident(ordinary=False, net=f"127.{base}") as root,
        resident(ordinary=True, net=f"127.{base + 1}") as user,
    ):
        prepared = root.run("make", "environment", at=user.checkout)
        assert prepared.returncode == 0, prepared.stdout
        made = (user.checkout / ".venv").resolve()
        try:
            check_readme_commands(user)
        finally:
            shutil.rmtree(made, ignore_errors=True)
