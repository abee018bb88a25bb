"""``pocache submit``: send a prompt, stream the text, show what becomes of it to the payout.

The text goes to standard output, everything about it to standard error; with ``--json`` every line on standard output
is one object. Exit codes: 0 settled, 1 refused or refunded, 2 wrong usage or configuration.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

import click

from pocache.protocol.limits import OUTPUT_TOKENS_MAX, TEMPERATURE_MICRO_MAX
from pocache_cli.failure import exit_on_error

if TYPE_CHECKING:
    from pocache.client import Job, Piece, PocacheClient
    from pocache.protocol.ids import ModelId
    from pocache.runtime.network import Model, NetworkDirectory
    from pocache.wire import messages as m
    from pocache_cli.models import TextCodec

MAX_TOKENS_DEFAULT: Final = 64
SEED_BYTES: Final = 32
MICRO: Final = 1_000_000
_TOKEN_MAX: Final = 2**32 - 1

CONTROLS: Final = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""What a terminal would obey instead of showing; a model may write anything."""

VERDICTS: Final[Mapping[str, str]] = {
    "no_challenge": "settled without an audit: the lottery passed it by and nobody challenged",
    "agree": "verified: the verifier's KV cache is the generator's",
    "confirm_generator": "verified: a later verifier's KV cache is the generator's",
    "confirm_prior": "the generator is convicted: two verifiers agree with each other and not with it",
    "void": "undecided: no two claims agree, everything is returned",
    "no_opening": "the generator is convicted: it did not open its commitment",
    "equivocation": "the generator is convicted: it signed two commitments",
    "refunded": "nobody generated it: everything is returned",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be asked, as the arguments say it."""

    text: str | None
    tokens: tuple[int, ...]
    network_dir: str
    name: str | None
    model: str | None
    max_tokens: int
    temperature_micro: int
    seed: bytes | None
    challenge: bool
    logprobs: bool = False


def _parse_tokens(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) <= _TOKEN_MAX for part in parts):
        raise click.BadParameter("token ids are whole numbers with commas between them, such as 1,2,3")
    return tuple(int(part) for part in parts)


def _parse_temperature(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    """Read a decimal exactly: no float takes part in what is signed."""
    try:
        micro = Decimal(text) * MICRO
    except InvalidOperation:
        raise click.BadParameter(f"{text!r} is not a number") from None
    if not micro.is_finite() or not 0 <= micro <= TEMPERATURE_MICRO_MAX or micro != int(micro):
        limit = TEMPERATURE_MICRO_MAX // MICRO
        raise click.BadParameter(f"{text} is not between 0 and {limit} with at most six decimals")
    return int(micro)


@click.command()
@click.argument("text", required=False)
@click.option("--tokens", metavar="1,2,3", callback=_parse_tokens, help="Token ids instead of TEXT.")
@click.option(
    "--network-dir",
    envvar="POCACHE_NETWORK_DIR",
    default=".pocache/network",
    show_default=True,
    help="The network directory.",
)
@click.option(
    "--as", "name", metavar="NAME", help="Whose key signs and pays (default: the network's first user)."
)
@click.option("--model", metavar="NAME", help="Name or id of the model (default: the one there is).")
@click.option(
    "--max-tokens",
    default=MAX_TOKENS_DEFAULT,
    show_default=True,
    type=click.IntRange(1, OUTPUT_TOKENS_MAX),
    help="Most tokens of the answer; the deposit is for all of them.",
)
@click.option(
    "--temperature",
    "temperature_micro",
    metavar="NUMBER",
    default="0",
    show_default=True,
    callback=_parse_temperature,
    help="0 is greedy.",
)
@click.option("--seed", type=click.IntRange(0, 2 ** (8 * SEED_BYTES) - 1), help="Your own sampling seed.")
@click.option("--challenge", is_flag=True, help="Have the result audited at full depth.")
@click.option(
    "--logprobs", is_flag=True, help="How likely each token was, as its worker says: not audited as such."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on standard output.")
def submit(
    *,
    text: str | None,
    tokens: tuple[int, ...],
    network_dir: str,
    name: str | None,
    model: str | None,
    max_tokens: int,
    temperature_micro: int,
    seed: int | None,
    challenge: bool,
    logprobs: bool,
    as_json: bool,
) -> None:
    """Send TEXT to a network; stream the answer, then the verdict and the payout."""
    if (text is None) == (not tokens):
        raise click.UsageError("give either a TEXT or --tokens")
    user_seed = None if seed is None else seed.to_bytes(SEED_BYTES, "big")
    request = Request(
        text, tokens, network_dir, name, model, max_tokens, temperature_micro, user_seed, challenge, logprobs
    )
    with exit_on_error("submit", as_json=as_json):
        is_settled = asyncio.run(_run(request, JsonView() if as_json else TextView()))
    sys.exit(0 if is_settled else 1)


async def _run(request: Request, view: View) -> bool:
    from pocache.bus.nats_bus import NatsSettings, connect_bus
    from pocache.client import open_client
    from pocache.runtime.config import load_settings
    from pocache.runtime.telemetry import configure_logging
    from pocache_cli.bootstrap import pick_user
    from pocache_cli.models import load_tokenizer, read_source

    configure_logging("error")
    settings = load_settings({**os.environ, "POCACHE_NETWORK_DIR": request.network_dir}, name_default="")
    directory = settings.directory
    model = choose_model(directory.load_models(), request.model)
    source = read_source(directory, model.model_id)
    codec = None if source is None else load_tokenizer(source)
    prompt = compute_prompt(request, codec, model)
    name = pick_user(directory, request.name)
    view.begin(codec, get_names(directory))
    async with AsyncExitStack() as stack:
        nats = NatsSettings.of(directory, settings.nats_url, name)
        bus = await stack.enter_async_context(connect_bus(nats))
        client = await stack.enter_async_context(
            open_client(bus, directory.genesis, directory.signing_key(name))
        )
        return await follow(client, model, prompt, request, view)


async def follow(
    client: PocacheClient, model: Model, prompt: Sequence[int], request: Request, view: View
) -> bool:
    """Submit the prompt and show everything to the payout; returns whether the job was settled.

    Raises RefusedError when the network refused it.
    """
    from pocache.client import RefusedError
    from pocache.protocol.commitment import Sampling
    from pocache.protocol.lifecycle import Phase

    job = await client.submit(
        model.model_id,
        prompt,
        token_count_max=request.max_tokens,
        sampling=Sampling(temperature_micro=request.temperature_micro),
        seed=request.seed,
        logprobs=request.logprobs,
    )
    view.show_submitted(job)

    async def show_events() -> None:
        async for event in client.events(job):
            view.show_event(event)
            if event.phase == Phase.COMMITTED.value and request.challenge:
                await client.challenge(job)

    async def show_text() -> None:
        async for piece in client.stream(job):
            view.show_piece(piece)
        view.end_text(job)

    tasks = [asyncio.ensure_future(show_events()), asyncio.ensure_future(show_text())]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert job.end is not None
    if job.end.phase == Phase.REFUSED.value:
        raise RefusedError(job.end.code, job.end.detail)
    view.show_payout(await client.wait_payout(job), job)
    return job.end.phase == Phase.SETTLED.value


def choose_model(models: Mapping[ModelId, Model], wanted: str | None) -> Model:
    """Return the model of this name or id prefix; ConfigError that lists them where that is not one."""
    from pocache.protocol.errors import ConfigError

    found = [
        model
        for model_id, model in models.items()
        if wanted is None or model.entry.name == wanted or (wanted and model_id.hex().startswith(wanted))
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{model.entry.name} ({model_id.hex()[:12]})" for model_id, model in models.items())
    raise ConfigError(f"choose a model by --model; this network serves: {names or 'none yet'}")


def compute_prompt(request: Request, codec: TextCodec | None, model: Model) -> tuple[int, ...]:
    """Return the prompt's tokens; ConfigError when there is a text and no tokenizer for it."""
    from pocache.protocol.errors import ConfigError

    if request.text is None:
        return request.tokens
    if codec is None:
        raise ConfigError(
            f"there is no tokenizer for {model.entry.name} on this machine: give token ids by --tokens 1,2,3"
        )
    return tuple(codec.encode(request.text))


def get_names(directory: NetworkDirectory) -> dict[str, str]:
    """Return the names of the participants whose keys lie here, by their ids."""
    return {participant: name for name, participant in directory.participants().items()}


def make_printable(text: str) -> str:
    """Return what a stranger's worker wrote without what would command a terminal; a file gets it as it is."""
    return text.translate(CONTROLS) if sys.stdout.isatty() else text


class View:
    """What is shown of a job; the base shows nothing."""

    def __init__(self) -> None:
        self.codec: TextCodec | None = None
        self.names: dict[str, str] = {}

    def begin(self, codec: TextCodec | None, names: dict[str, str]) -> None:
        """Take what is needed to write tokens as text, and participants by name."""
        self.codec, self.names = codec, names

    def show_submitted(self, job: Job) -> None:
        """The bus has stored the submission."""

    def show_event(self, event: m.JobEventV1) -> None:
        """The router said something."""

    def show_piece(self, piece: Piece) -> None:
        """Tokens came."""

    def end_text(self, job: Job) -> None:
        """No more tokens will come."""

    def show_payout(self, payout: m.PayoutSettledV1, job: Job) -> None:
        """The ledger emptied the job's pool."""


class TextView(View):
    """For people: the text on standard output, the rest on standard error."""

    def __init__(self) -> None:
        super().__init__()
        self._attempt = 0
        self._text: Any = None
        self._logprobs: list[float] = []

    def show_submitted(self, job: Job) -> None:
        """Name the job."""
        self._say(f"job {job.job_id.hex()}")

    def show_event(self, event: m.JobEventV1) -> None:
        """Show the phase, with code and reason where there are."""
        about = " ".join(part for part in (event.code, event.detail) if part)
        self._say(f"{event.phase}{f' ({about})' if about else ''}")

    def show_piece(self, piece: Piece) -> None:
        """Write the text that is complete; begin anew when another attempt does."""
        from pocache_cli.models import TextStream

        if piece.attempt != self._attempt:
            if self._attempt:
                click.echo()
                self._say(f"attempt {piece.attempt} begins anew")
            self._attempt = piece.attempt
            self._logprobs.clear()
            self._text = None if self.codec is None else TextStream(self.codec.decode)
        self._logprobs += piece.logprobs or ()
        if self._text is None:
            click.echo("".join(f"{token} " for token in piece.tokens), nl=False)
        else:
            click.echo(make_printable(self._text.feed(piece.tokens)), nl=False)

    def end_text(self, job: Job) -> None:
        """Write what was held back, and end the line."""
        if self._attempt:
            click.echo("" if self._text is None else make_printable(self._text.feed((), is_last=True)))
        if self._logprobs:
            mean = sum(self._logprobs) / len(self._logprobs)
            self._say(
                f"mean log-probability {mean:.4f} over {len(self._logprobs)} tokens, "
                f"the least {min(self._logprobs):.4f}, as the worker says"
            )
        elif job.is_scored and job.result is not None:
            self._say("the worker said no log-probabilities")

    def show_payout(self, payout: m.PayoutSettledV1, job: Job) -> None:
        """Say how it ended and who got what."""
        if job.challenge_refusal is not None:
            self._say(f"the challenge was refused: {job.challenge_refusal}")
        self._say(f"{payout.case}: {VERDICTS[payout.case]}")
        for line in payout.lines:
            who = self.names.get(line.account, line.account)
            gain = line.amount_micro - line.held_micro
            self._say(f"  {who:24} {line.held_micro:>16,} in {line.amount_micro:>16,} out {gain:>+16,}")
        for one in payout.slashed:
            self._say(f"  slashed: {self.names.get(one, one)}")

    @staticmethod
    def _say(text: str) -> None:
        click.echo(text, err=True)


class JsonView(View):
    """For scripts: one object a line."""

    def show_submitted(self, job: Job) -> None:
        """Name the job."""
        self._write("submitted", job_id=job.job_id.hex(), prompt_count=len(job.prompt))

    def show_event(self, event: m.JobEventV1) -> None:
        """Show the phase."""
        self._write(
            "phase",
            phase=event.phase,
            attempt=event.attempt,
            code=event.code,
            detail=event.detail,
            at_ms=event.at_ms,
            generator=event.generator,
        )

    def show_piece(self, piece: Piece) -> None:
        """Show tokens as they are; the text comes whole with the output."""
        scores = {} if piece.logprobs is None else {"logprobs": list(piece.logprobs)}
        self._write(
            "tokens",
            attempt=piece.attempt,
            first_index=piece.first_index,
            tokens=list(piece.tokens),
            **scores,
        )

    def end_text(self, job: Job) -> None:
        """Show the committed output."""
        if job.result is not None:
            text = None if self.codec is None else self.codec.decode(job.output)
            self._write("output", tokens=list(job.output), text=text, finish_reason=job.result.finish_reason)

    def show_payout(self, payout: m.PayoutSettledV1, job: Job) -> None:
        """Show the whole payout."""
        refusal = job.challenge_refusal
        self._write(
            "payout",
            job_id=job.job_id.hex(),
            case=payout.case,
            stage=payout.stage,
            pool_micro=payout.pool_micro,
            lines=[
                {
                    "account": line.account,
                    "name": self.names.get(line.account),
                    "held_micro": line.held_micro,
                    "amount_micro": line.amount_micro,
                }
                for line in payout.lines
            ],
            slashed=list(payout.slashed),
            challenge_refused=None if refusal is None else refusal.refusal_code,
        )

    @staticmethod
    def _write(event: str, **fields: Any) -> None:
        click.echo(json.dumps({"event": event, **fields}))
