"""`dwcp receipt`: fetching receipts, and verifying them with nothing but the genesis file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcp.cli import output
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State, Workload

if TYPE_CHECKING:
    from dwcp.consensus.ledger.receipts import Verified

app = typer.Typer(no_args_is_help=True, help="Fetch receipts, verify them offline.", rich_markup_mode=None)
File = Annotated[Path, typer.Argument(help="the receipt file")]
GenesisFile = Annotated[Path, typer.Option("--genesis", help="the genesis file you trust")]
Folder = Annotated[Path | None, typer.Option("--out", help="write the receipt files into this folder")]


@app.command()
def verify(file: File, genesis: GenesisFile, as_json: Json = False) -> None:
    """Verify a receipt offline: no service is asked, only the genesis file is trusted.

    Example: dwcp receipt verify w-abcdefghij-1-done.json --genesis genesis.json
    """
    from dwcp.consensus.ledger import genesis as genesis_file
    from dwcp.consensus.ledger import receipts

    with file.open("rb") as source:
        receipt = receipts.decode(source.read(receipts.RECEIPT_BYTES_MAX + 1))
    facts = receipts.verify(receipt, genesis_file.load(genesis))
    output.show(_facts(facts), as_json=as_json, text=_sentence(facts))


@app.command()
def get(workload: Workload, out: Folder = None, state: State = None, as_json: Json = False) -> None:
    """Fetch a workload's receipts from the manager and verify each one here.

    Example: dwcp receipt get w-abcdefghij --out receipts/
    """
    from dwcp.api import manager as api
    from dwcp.cli.calls import ServiceRefused, control_plane, genesis_of
    from dwcp.cli.following import check, describe

    env = current()
    layout = env.layout(state)
    with control_plane(env, layout) as manager:
        stored = manager.ask(api.ReceiptList, api.receipts(workload)).receipts
    if not stored:
        raise ServiceRefused(
            "no_receipt", f"there is no receipt of {workload} yet; see `dwcp workloads {workload}`"
        )
    genesis = genesis_of(layout)
    proofs = [check(one, genesis) for one in stored if one.workload == workload]
    written = [str(_write(out, one)) for one in (proof.stored for proof in proofs)] if out is not None else []
    text = "\n".join([*map(describe, proofs), *(f"wrote {path}" for path in written)])
    answer = [_facts(proof.facts) | {"kind": proof.stored.kind} for proof in proofs]
    output.show({"receipts": answer, "files": written}, as_json=as_json, text=text)


def _write(folder: Path, stored: Any) -> Path:
    # Any: `api.manager.StoredReceipt`, imported only when needed
    import msgspec

    from dwcp.consensus.ledger import receipts

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stored.workload}-{stored.attempt}-{stored.kind}.json"
    content = receipts.decode(msgspec.json.encode(stored.receipt)).encode()
    with path.open("xb") as file:  # never over another file
        file.write(content)
    return path


def _facts(facts: Verified) -> dict[str, Any]:
    from dwcp.cli.ledger_text import shown_result

    return {
        "verified": True,
        "chain": facts.chain,
        "chain_id": facts.chain_id.hex(),
        "epoch": facts.epoch,
        "index": facts.index,
        "time_ms": facts.time_ms,
        "client": facts.client_name or facts.client.hex(),
        "operation": type(facts.operation).__name__,
        "result": shown_result(facts.result),
        "signers": facts.signers,
    }


def _sentence(facts: Verified) -> str:
    from dwcp.runtime.clock import iso

    who = facts.client_name or facts.client.hex()[:16]
    return (
        f"valid: {type(facts.operation).__name__} of {who} was committed at position {facts.index} of {facts.chain}"
        f" at {iso(facts.time_ms)}, signed by {', '.join(facts.signers)}"
    )
