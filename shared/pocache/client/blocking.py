"""A user on the bus without asyncio: what :class:`pocache.client.PocacheClient` does, from any thread.

A loop of its own runs in a thread while the context lasts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from anyio.from_thread import BlockingPortal, start_blocking_portal

from pocache.client.connecting import connect
from pocache.client.network import PocacheClient
from pocache.job import Job, Piece
from pocache.protocol.commitment import Sampling
from pocache.protocol.ids import JobId, ModelId
from pocache.protocol.lifecycle import Phase
from pocache.receipt.report import Report
from pocache.receipt.trust import TrustRoots
from pocache.runtime.network import NetworkDirectory
from pocache.wire import messages as m


class BlockingClient:
    """One user's connection to a network. Make it by :func:`open_blocking_client`."""

    def __init__(self, client: PocacheClient, portal: BlockingPortal) -> None:
        self._client = client
        self._portal = portal

    def submit(
        self,
        model_id: ModelId,
        prompt: Sequence[int],
        *,
        token_count_max: int,
        sampling: Sampling | None = None,
        seed: bytes | None = None,
        eos_stop: bool = True,
        logprobs: bool = False,
    ) -> Job:
        """Publish a job and return it once the bus has stored it."""
        return self._portal.call(
            partial(
                self._client.submit,
                model_id,
                prompt,
                token_count_max=token_count_max,
                sampling=sampling,
                seed=seed,
                eos_stop=eos_stop,
                logprobs=logprobs,
            )
        )

    def stream(self, job: Job) -> Iterator[Piece]:
        """Yield tokens as they come, to the end of the committed output."""
        pieces = self._client.stream(job)
        while (piece := self._portal.call(_get_next, pieces)) is not None:
            yield piece

    def wait(self, job: Job, *phases: Phase) -> m.JobEventV1:
        """Wait until the job is in one of ``phases``, or past them at its end."""
        return self._portal.call(partial(self._client.wait, job, *phases))

    def cancel(self, job: Job | JobId) -> None:
        """Ask for no more of the job."""
        self._portal.call(self._client.cancel, job)

    def challenge(self, job: Job) -> None:
        """Ask that the job's recorded commitment be audited at full depth."""
        self._portal.call(self._client.challenge, job)

    def get_receipt(self, job: Job | JobId) -> bytes:
        """Return a finished job's receipt in its binary form."""
        return self._portal.call(self._client.get_receipt, job)

    def verify_receipt(self, job: Job | JobId, trust: TrustRoots, *, wait_s: float = 120.0) -> Report:
        """Wait for a job's end, fetch its receipt, and judge it here. Raises ReceiptError naming what does not hold."""
        return self._portal.call(partial(self._client.verify_receipt, job, trust, wait_s=wait_s))

    def balance(self) -> m.BalanceReplyV1:
        """Ask the ledger for this user's balances."""
        return self._portal.call(self._client.balance)


@contextmanager
def open_blocking_client(directory: NetworkDirectory, name: str, url: str) -> Iterator[BlockingClient]:
    """Yield the client of one user of a network directory while the context lasts."""
    with start_blocking_portal() as portal:
        with portal.wrap_async_context_manager(connect(directory, name, url)) as client:
            yield BlockingClient(client, portal)


async def _get_next(pieces: AsyncIterator[Piece]) -> Piece | None:
    return await anext(pieces, None)
