"""drand servers for a test: real HTTP on loopback, any chain, every kind of misbehaviour."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pocache.protocol import bls
from pocache.protocol.beacon import Chain, Scheme, compute_secret

Answer = tuple[int, bytes]
Fault = Callable[[asyncio.StreamWriter, Answer], Any]


@dataclass(frozen=True)
class Recorded:
    """A round as a server stores it."""

    signature: bytes
    previous: bytes | None = None


class SignedChain:
    """A chain of any scheme whose secret the test has: its rounds, made in order."""

    def __init__(self, scheme: Scheme, *, genesis_s: int, period_s: int = 3, seed: bytes = bytes(32)) -> None:
        self._secret = compute_secret(hashlib.sha512(b"kit/drand" + scheme.encode() + seed).digest())
        self.chain = Chain(
            scheme=scheme,
            public_key=bls.compute_public_key(scheme.arrangement, self._secret),
            genesis_s=genesis_s,
            period_s=period_s,
            genesis_seed=seed,
            beacon_id="kit",
        )

    def make_rounds(self, count: int) -> dict[int, Recorded]:
        """Return rounds 1 … count."""
        rounds: dict[int, Recorded] = {}
        scheme, previous = self.chain.scheme, self.chain.genesis_seed
        for number in range(1, count + 1):
            prefix = previous if scheme.is_chained else b""
            message = hashlib.sha256(prefix + number.to_bytes(8, "big")).digest()
            signature = bls.sign(scheme.arrangement, self._secret, message, scheme.domain)
            rounds[number] = Recorded(signature, previous if scheme.is_chained else None)
            previous = signature
        return rounds


@dataclass
class DrandServer:
    """One server of one chain; ``fault`` may answer in its place, ``change`` may alter a document."""

    chain: Chain
    rounds: dict[int, Recorded] = field(default_factory=dict)
    too_early: int = 425
    fault: Fault | None = None
    change: Callable[[str, dict[str, Any]], Any] | None = None
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> Answer:
        """Return status and body, as drand's own relay would give them."""
        chain_hash = self.chain.chain_hash.hex()
        for prefix, is_v2 in (
            (f"/v2/chains/{chain_hash}/", True),
            (f"/v2/beacons/{self.chain.beacon_id}/", True),
            (f"/{chain_hash}/", False),
        ):
            if path.startswith(prefix):
                document = self._describe(path.removeprefix(prefix), is_v2=is_v2)
                if document is None:
                    return self.too_early, b"Requested future beacon\n"
                if self.change is not None:
                    document = self.change(path, document)
                return 200, json.dumps(document).encode()
        return 404, b"404 page not found\n"

    def _describe(self, path: str, *, is_v2: bool) -> dict[str, Any] | None:
        if path == "info":
            return describe_info_v2(self.chain) if is_v2 else self.chain.to_info()
        folder, _, name = path.partition("/")
        if folder != ("rounds" if is_v2 else "public"):
            return None
        number = max(self.rounds, default=0) if name == "latest" else int(name)
        recorded = self.rounds.get(number)
        if recorded is None:
            return None
        document: dict[str, Any] = {"round": number, "signature": recorded.signature.hex()}
        if not is_v2:
            document["randomness"] = hashlib.sha256(recorded.signature).hexdigest()
        if recorded.previous is not None:
            document["previous_signature"] = recorded.previous.hex()
        return document

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests."""
        try:
            while line := await reader.readline():
                while (await reader.readline()).strip():
                    pass
                path = line.split()[1].decode()
                self.asked.append(path)
                answer = self.answer(path)
                if self.fault is None:
                    write_answer(writer, answer)
                else:
                    await self.fault(writer, answer)
                await writer.drain()
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client went, or the test is over
        finally:
            writer.close()


def describe_info_v2(chain: Chain) -> dict[str, Any]:
    """Return a chain's info in drand's second form."""
    return {
        "public_key": chain.public_key.hex(),
        "period": chain.period_s,
        "genesis_time": chain.genesis_s,
        "genesis_seed": chain.genesis_seed.hex(),
        "chain_hash": chain.chain_hash.hex(),
        "scheme": chain.scheme.value,
        "beacon_id": chain.beacon_id,
    }


def write_answer(
    writer: asyncio.StreamWriter, answer: Answer, *headers: str, length: int | None = None
) -> None:
    """Write one HTTP answer; ``length`` is what it claims to have."""
    status, body = answer
    lines = [
        f"HTTP/1.1 {status} X",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
        "",
        "",
    ]
    writer.write("\r\n".join(lines).encode() + body)


@asynccontextmanager
async def serve_drand(*servers: DrandServer) -> AsyncIterator[tuple[DrandServer, ...]]:
    """Run the servers on free loopback ports while the context lasts."""
    handlers: set[asyncio.Task[None]] = set()

    def accept(server: DrandServer) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(server.handle(reader, writer))
            handlers.add(task)
            task.add_done_callback(handlers.discard)

        return start

    listeners = []
    for server in servers:
        listener = await asyncio.start_server(accept(server), "127.0.0.1", 0)
        host, port = listener.sockets[0].getsockname()
        server.url = f"http://{host}:{port}"
        listeners.append(listener)
    try:
        yield servers
    finally:
        for listener in listeners:
            listener.close()
        for task in tuple(handlers):
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
