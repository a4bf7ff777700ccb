"""The processes of a transfer benchmark, each started with a role and JSON.

receive   an agent's data path over mutual TLS, on a chunk store
send      the other agent: reads one line per transfer, a folder, answers when it is durable at the receiver
relay     passes connections on, every byte `delay_s` later, in both directions
accept    runs a shell command with one accepted connection as its standard input
"""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from data_path import say, serve_store, tls_files

RELAY_BYTES = 64 << 20  # in the relay at once; more than any link here has under way


def receive(plan: dict[str, Any]) -> None:
    import uvloop

    uvloop.run(_receive(plan))


async def _receive(plan: dict[str, Any]) -> None:
    from dwcp.runtime.chunkstore import ChunkStore

    store = ChunkStore.open(Path(plan["store"]), quota_bytes=1 << 40)
    await serve_store("receiver", store, at=(plan["host"], plan["port"]), tls=tls_files(plan["tls"]))


def send(plan: dict[str, Any]) -> None:
    import uvloop

    uvloop.run(_send(plan))


async def _send(plan: dict[str, Any]) -> None:
    from dwcp.runtime import choosing
    from dwcp.runtime.http import client
    from dwcp.runtime.packflow import FixedChooser
    from dwcp.runtime.payloads import upload
    from dwcp.runtime.trees import read_tree

    name = plan.get("codec", "auto")
    chooser = FixedChooser(name) if name != "auto" else choosing.of_this_host(Path(plan["cache"]))
    say(ready=True)
    async with client(tls_files(plan["tls"]), timeout_s=120) as http:
        while line := await asyncio.to_thread(sys.stdin.readline):
            began, cpu = time.monotonic(), time.process_time()
            tree = await asyncio.to_thread(read_tree, Path(line.strip()))
            held = await upload(http, plan["url"], tree, name="bench", chooser=chooser)
            say(seconds=time.monotonic() - began, cpu_s=time.process_time() - cpu, sent=held.received_bytes)


def relay(plan: dict[str, Any]) -> None:
    listening = _listen(plan["host"], plan["port"])
    say(ready=True)
    while True:
        near, _ = listening.accept()
        far = socket.create_connection((plan["to_host"], plan["to_port"]))
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target in ((near, far), (far, near)):
            line = _Line(source, target, plan["delay_s"])
            threading.Thread(target=line.read, daemon=True).start()
            threading.Thread(target=line.write, daemon=True).start()


class _Line:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, target: socket.socket, delay_s: float) -> None:
        self._source, self._target, self._delay_s = source, target, delay_s
        self._waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        self._room = threading.Semaphore(RELAY_BYTES >> 16)

    def read(self) -> None:
        while True:
            try:
                data = self._source.recv(1 << 18)
            except OSError:
                data = b""
            for _ in range((len(data) + 65_535) >> 16):
                self._room.acquire()
            self._waiting.put((time.monotonic() + self._delay_s, data))
            if not data:
                return

    def write(self) -> None:
        while True:
            due_s, data = self._waiting.get()
            if (early := due_s - time.monotonic()) > 0:
                time.sleep(early)
            try:
                if not data:
                    self._target.shutdown(socket.SHUT_WR)
                    return
                self._target.sendall(data)
            except OSError:
                data = b""
                self._source.close()
                return
            for _ in range((len(data) + 65_535) >> 16):
                self._room.release()


def accept(plan: dict[str, Any]) -> None:
    listening = _listen(plan["host"], plan["port"])
    say(ready=True)
    connection, _ = listening.accept()
    code = subprocess.run(["bash", "-c", plan["command"]], stdin=connection.fileno()).returncode
    say(code=code)


def _listen(host: str, port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(64)
    return listening


if __name__ == "__main__":
    {"receive": receive, "send": send, "relay": relay, "accept": accept}[sys.argv[1]](json.loads(sys.argv[2]))
