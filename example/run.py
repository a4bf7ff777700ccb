"""Runs the example on a started platform, end to end: real files, another site, a verified receipt.

Starts the platform where it does not run. The output is fetched and compared with
hashes computed here from the source, so nothing on the way is taken on trust.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import payload

from dwcp.runtime.config import environment
from dwcp.runtime.layout import find

HERE = Path(__file__).resolve().parent
DWCP = [sys.executable, "-m", "dwcp.cli.main"]


class Failed(Exception):
    """A step did not do what it should; `code` is that step's exit code."""

    def __init__(self, sentence: str, code: int = 2) -> None:
        super().__init__(sentence)
        self.code = code


def dwcp(*arguments: str) -> None:
    """One command, its output shown as it comes."""
    code = subprocess.run([*DWCP, *arguments], check=False).returncode
    if code != 0:
        raise Failed(f"`dwcp {' '.join(arguments)}` ended with {code}", code)


def dwcp_json(*arguments: str) -> Any:  # Any: the command's own document
    """One command with --json."""
    done = subprocess.run([*DWCP, *arguments, "--json"], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sentence = done.stderr.strip() or f"exit {done.returncode}"
        raise Failed(f"`dwcp {' '.join(arguments)}`: {sentence}", done.returncode)
    return json.loads(done.stdout)


def run_job(job: Path, files: Path, *, quiet: bool) -> dict[str, Any]:
    """Submits the job, waits for its receipt, fetches the output and compares it with the source."""
    begun = time.monotonic()
    if quiet:
        answer = dwcp_json("submit", str(job), "--wait")
        identity = answer["workload"]["id"]
    else:
        dwcp("submit", str(job), "--wait")
        views = dwcp_json("workloads")["workloads"]
        identity = max(views, key=lambda view: view["submitted_ms"])["id"]
    job_s = time.monotonic() - begun
    receipts = dwcp_json("receipt", "get", identity)["receipts"]
    if not any(receipt["kind"].removeprefix("observed-") == "done" for receipt in receipts):
        raise Failed(f"{identity}: no receipt of its end")
    with tempfile.TemporaryDirectory(prefix="dwcp-output-") as folder:
        dwcp_json("output", identity, f"{folder}/output")
        compared = compare(Path(folder), files)
    return {"workload": identity, "job_s": round(job_s, 2), "receipts": len(receipts), "files": compared}


def compare(output: Path, files: Path) -> int:
    """Every file of the source is in the index with its true hash, and nothing else is."""
    index = next(output.rglob("index.txt"), None)
    if index is None:
        raise Failed("the output has no index.txt")
    lines = index.read_text(errors="surrogateescape").splitlines()
    found = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found.pop("./out/index.txt", None)  # the index itself, still empty when it was hashed
    expected = {
        f"./{path.relative_to(files)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files.rglob("*")
        if path.is_file()
    }
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        raise Failed(f"the output differs from the source in {len(wrong)} files, among them {wrong[0]}")
    return len(expected)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=float, default=50, help="size of the payload")
    parser.add_argument(
        "--json", action="store_true", help="one JSON document, and no starting of the platform"
    )
    arguments = parser.parse_args()
    folder = find(None, environment()).root / "example"  # not the checkout: it may belong to somebody else
    files = folder / "payload"
    try:
        if not arguments.json:
            dwcp("up")
        copied, size_bytes = payload.build(files, mib=arguments.mib)
        job = folder / "job.yaml"
        job.write_bytes((HERE / "job.yaml").read_bytes())
        if not arguments.json:
            print(
                f"the payload: {copied} real files, {size_bytes / 1_048_576:.1f} MiB, from /usr of this machine",
                flush=True,
            )
        answer = run_job(job, files, quiet=arguments.json)
    except Failed as failed:
        print(failed, file=sys.stderr)
        return failed.code
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except payload.NotReplaceable as found:
        print(found, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 75
    if arguments.json:
        print(json.dumps(answer))
    else:
        console = dwcp_json("status")["console"]
        print(f"all {answer['files']} files were indexed on another site; every hash agrees with the source")
        print(f"health: {console}/api/clusters/all/health    stop it all: make down")
    return 0


if __name__ == "__main__":
    sys.exit(main())
