"""The work behind `dwcp send`: which agent is meant, and the two directions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dwcp.cli.calls import require_installed
from dwcp.cli.environment import Environment
from dwcp.cli.progress import meter
from dwcp.compression.codecs import by_name
from dwcp.compression.errors import ManifestMissing, PayloadRefused
from dwcp.control.errors import JobRefused
from dwcp.runtime.layout import Layout
from dwcp.runtime.trees import Tree, read_tree

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from dwcp.runtime.packflow import Chooser

_SITE = re.compile(r"([a-z][a-z0-9-]{0,30}):([^/:]*)")
_URL = re.compile(r"(https://[^/]+)/?([^/]*)")
_STREAM = Path("-")


@dataclass(frozen=True, slots=True)
class Place:
    """An agent, by its site or its address, and the name under which it holds something."""

    site: str
    url: str
    name: str


@dataclass(frozen=True, slots=True)
class Done:
    """What is there now. `moved_bytes` are raw bytes that had to travel."""

    name: str
    root: str
    bytes: int
    files: int
    moved_bytes: int


@dataclass(frozen=True, slots=True)
class Link:
    """Under whose identity, and how packed."""

    env: Environment
    layout: Layout
    codec: str

    def chooser(self) -> Chooser:
        """Blocking: the first use on a host measures its speeds (under 2 s)."""
        from dwcp.runtime import choosing
        from dwcp.runtime.packflow import FixedChooser

        if self.codec != "auto":
            return FixedChooser(by_name(self.codec).name)
        return choosing.of_this_host(self.layout.root)

    def url(self, place: Place) -> str:
        """The agent's, from the manager's list of nodes unless an address was given."""
        from dwcp.api import manager as api
        from dwcp.cli.calls import control_plane

        if place.url:
            require_installed(self.layout)  # its authority is the one that the agent trusts
            return place.url
        with control_plane(self.env, self.layout) as manager:
            nodes = [view.node for view in manager.ask(api.NodeList, api.nodes()).nodes]
        there = sorted(node.name for node in nodes if node.site == place.site)
        if not there:
            sites = ", ".join(sorted({node.site for node in nodes})) or "none"
            raise JobRefused(f"no worker machine stands at {place.site!r}; sites: {sites}")
        return next(f"https://{node.address}" for node in nodes if node.name == there[0])


def place(text: str) -> Place | None:
    """`SITE:[NAME]` or `https://HOST:PORT/[NAME]`; None: a path of this machine."""
    if found := _URL.fullmatch(text):
        return Place("", found[1], found[2])
    found = _SITE.fullmatch(text)
    return Place(found[1], "", found[2]) if found else None


def push(source: Path, there: Place, link: Link, bars: Bars) -> Done:
    """Raises `PayloadRefused`, `PayloadChanged`, or what the agent says."""
    from dwcp.runtime.http_client import client as open_client
    from dwcp.runtime.payloads import Handed, Uploaded, upload

    if source == _STREAM and not there.name:
        raise PayloadRefused("standard input has no name: say one, as in `dwcp send - rome:log`")
    name = there.name or source.absolute().name
    url = link.url(there)
    with _tree(source, name) as tree:
        show = meter(bars, "sending", tree.total_bytes)

        def tell(handed: Handed) -> None:
            show(handed.done_bytes)

        async def send() -> Uploaded:
            chooser = await asyncio.to_thread(link.chooser)
            async with open_client(link.env.operator_tls(link.layout), timeout_s=60) as client:
                return await upload(client, url, tree, name=name, tell=tell, chooser=chooser)

        held = asyncio.run(send())
    return Done(name, held.root, held.bytes, held.files, held.received_bytes)


def fetch_stream(there: Place, out: BinaryIO, link: Link, bars: Bars) -> Done:
    """One file onto a pipe, after all of it was verified. Raises `PayloadRefused` where it is not one file."""
    with tempfile.TemporaryDirectory(prefix="dwcp-send-") as folder:
        done = fetch(there, Path(folder) / "whole", link, bars, one_file=True)
        found = list((Path(folder) / "whole").iterdir())
        if len(found) != 1 or found[0].is_symlink() or not found[0].is_file():
            raise _no_stream(there)
        with found[0].open("rb") as file:
            shutil.copyfileobj(file, out, 1 << 20)
        out.flush()
    return done


def _no_stream(there: Place) -> PayloadRefused:
    return PayloadRefused(f"{there.name!r} is more than one file: name a directory instead of -")


def fetch(there: Place, target: Path, link: Link, bars: Bars, *, one_file: bool = False) -> Done:
    """Into a new or empty directory. Raises `ManifestMissing` where nothing has that name."""
    from dwcp.runtime.http_client import client as open_client
    from dwcp.runtime.payloads import Sent, sent_list
    from dwcp.runtime.shipping import Progress, download

    url = link.url(there)
    whole = target.absolute()
    moved = 0

    async def get() -> Sent:
        async with open_client(link.env.operator_tls(link.layout), timeout_s=60) as client:
            held = await sent_list(client, url)
            found = next((each for each in held if each.name == there.name), None)
            if found is None:
                names = ", ".join(each.name for each in held[:20]) or "nothing"
                raise ManifestMissing(f"{there.name!r} was not sent there; there is {names}")
            if one_file and found.files != 1:
                raise _no_stream(there)
            show = meter(bars, "fetching", found.bytes)

            def tell(progress: Progress) -> None:
                nonlocal moved
                moved = progress.moved_bytes
                show(progress.done_bytes)

            await download(client, url, bytes.fromhex(found.root), whole, tell=tell)
            return found

    held = asyncio.run(get())
    return Done(held.name, held.root, held.bytes, held.files, moved)


@contextlib.contextmanager
def _tree(source: Path, name: str) -> Iterator[Tree]:
    """What is sent. Standard input is spooled to disk first: its chunks are named before they travel."""
    if source != _STREAM:
        whole = source.absolute()
        if not os.path.lexists(whole):
            raise PayloadRefused(f"{source} does not exist: there is nothing to send")
        yield read_tree(whole) if whole.is_dir() else read_tree(whole.parent, only=whole.name)
        return
    with tempfile.TemporaryDirectory(prefix="dwcp-send-") as folder:
        with (Path(folder) / name).open("xb") as spool:
            shutil.copyfileobj(sys.stdin.buffer, spool, 1 << 20)
        yield read_tree(Path(folder), only=name)
