"""How commands talk to the running services: mutual TLS as the operator, answers or faults.

The heavy imports stay inside, so that a command's `--help` is instant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from dwcp.api.requests import AnswerMalformed, Request, answer, refusal
from dwcp.cli.environment import Environment
from dwcp.runtime.errors import Exit, NotRunning, RuntimeFault

if TYPE_CHECKING:
    import httpx

    from dwcp.consensus.ledger.genesis import Genesis
    from dwcp.runtime.client import LedgerClient
    from dwcp.runtime.layout import Layout

T = TypeVar("T")
TIMEOUT_S = 45.0  # longer than the longest wait for events


class ServiceRefused(RuntimeFault):
    """A service refused the request; its sentence says why. Nothing was changed."""

    exit_code = Exit.REFUSED

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class ServiceUnavailable(RuntimeFault):
    """A service could not do it now; whether it happened may be unknown. Ask again, or see `dwcp status`."""

    exit_code = Exit.UNKNOWN


class ControlPlane:
    """Calls to the manager, or to the service that `who` names. One connection, kept open."""

    def __init__(self, client: httpx.Client, url: str, *, who: str = "the manager") -> None:
        self._client = client
        self._url = url
        self._who = who

    def ask(self, shape: type[T], wanted: Request) -> T:
        """The answer. Raises `ServiceRefused`, `ServiceUnavailable`, `NotRunning`."""
        import httpx

        try:
            got = self._client.request(
                wanted.method, self._url + wanted.path, content=wanted.body or None, headers=wanted.headers
            )
        except httpx.ConnectError as exc:
            raise NotRunning(f"{self._who} does not answer at {self._url}: start it with `dwcp up`") from exc
        except httpx.HTTPError as exc:
            detail = str(exc) or type(exc).__name__
            raise ServiceUnavailable(f"{self._who} broke off: {detail}; ask again") from exc
        if got.status_code >= 500:
            raise ServiceUnavailable(refusal(got.content, status=got.status_code).detail)
        if not got.is_success:
            said = refusal(got.content, status=got.status_code)
            raise ServiceRefused(said.code, said.detail)
        try:
            return answer(shape, got.content)
        except AnswerMalformed as exc:
            raise ServiceUnavailable(f"the answer of {self._who} cannot be read: {exc}") from exc


@contextmanager
def control_plane(env: Environment, layout: Layout) -> Iterator[ControlPlane]:
    """The installation's manager. Raises `NotRunning` where nothing is installed."""
    import httpx

    from dwcp.runtime.config import load
    from dwcp.runtime.keys import client_context
    from dwcp.runtime.world import World, manager_address, url

    require_installed(layout)
    where = url(manager_address(load(layout.cluster, World)), tls=True)
    context = client_context(env.operator_tls(layout))
    with httpx.Client(verify=context, timeout=TIMEOUT_S, trust_env=False) as client:
        yield ControlPlane(client, where)


@contextmanager
def service(
    env: Environment, layout: Layout, name: str, *, timeout_s: float = TIMEOUT_S
) -> Iterator[ControlPlane]:
    """The installation's service of that name; an answer may take `timeout_s`.

    Raises `NotRunning` where nothing is installed.
    """
    import httpx

    from dwcp.runtime.config import load
    from dwcp.runtime.keys import client_context
    from dwcp.runtime.world import World, services, url

    require_installed(layout)
    plan = next(plan for plan in services(load(layout.cluster, World), layout) if plan.name == name)
    assert plan.mutual is not None
    context = client_context(env.operator_tls(layout))
    with httpx.Client(verify=context, timeout=timeout_s, trust_env=False) as client:
        yield ControlPlane(client, url(plan.mutual, tls=True), who=name)


def require_installed(layout: Layout) -> None:
    """Raises `NotRunning` where there is no installation."""
    if not layout.genesis.exists():
        raise NotRunning(f"{layout.root}: nothing is installed here: run `dwcp up`, or name it with --state")


def genesis_of(layout: Layout) -> Genesis:
    """The installation's genesis."""
    from dwcp.consensus.ledger import genesis

    require_installed(layout)
    return genesis.load(layout.genesis)


async def open_ledger(env: Environment, layout: Layout) -> LedgerClient:
    """A session of the operator's own key."""
    from dwcp.runtime.client import LedgerClient
    from dwcp.runtime.keys import load_sign_key

    return await LedgerClient.open(
        genesis=genesis_of(layout),
        key=load_sign_key(layout.sign_key("operator")),
        tls=env.operator_tls(layout),
        session_path=None,
    )
