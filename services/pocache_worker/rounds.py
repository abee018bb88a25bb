"""The latest beacon round, verified by this process itself, for the commitments that must name it.

Shared by all identities of a process: each hears every round, one check of its pairing is enough. Refuses rounds of
another chain, envelopes that the beacon did not sign, and signatures that do not verify.
"""

from __future__ import annotations

import asyncio

import structlog

from pocache.protocol.beacon import verify_round
from pocache.protocol.errors import BeaconError, EnvelopeError, PocacheError
from pocache.runtime.network import Genesis
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import BeaconRoundV1


class RoundTracker:
    """Knows the highest round that was heard and verified; 0 before the first."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self._chain = genesis.beacon_chain
        self._seen = b""
        self._advanced = asyncio.Event()
        self._log = structlog.get_logger()
        self.latest = 0

    def observe(self, data: bytes) -> None:
        """Take one envelope as it came from the bus; what does not verify is logged and changes nothing."""
        if data == self._seen:
            return
        self._seen = data
        try:
            number = self._verify(data)
        except PocacheError as error:
            self._log.warning("round_refused", code=error.code, reason=str(error))
            return
        if number > self.latest:
            self.latest = number
            self._advanced.set()
            self._advanced = asyncio.Event()

    async def wait_beyond(self, number: int) -> int:
        """Wait for a round after ``number`` and return the latest."""
        while self.latest <= number:
            await self._advanced.wait()
        return self.latest

    def _verify(self, data: bytes) -> int:
        opened = open_envelope(data, self._genesis.network_id, BeaconRoundV1)
        if opened.sender not in self._genesis.round_signers:
            raise EnvelopeError("a round must be announced by the beacon")
        body = opened.body
        if body.chain_hash != self._chain.chain_hash:
            raise BeaconError("a round of another chain")
        if body.round_number > self.latest:
            verify_round(self._chain, body.round_number, body.signature, body.previous_signature or None)
        return body.round_number
