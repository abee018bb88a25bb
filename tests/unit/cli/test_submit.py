"""``pocache submit``: its arguments, and what is shown of a job from submission to payout."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kit.network import Network, make_network
from kit.userside import USER, WORKER, UserSide, open_user_side
from pocache.client import Job, RefusedError
from pocache.protocol.errors import ConfigError
from pocache.wire import messages as m
from pocache.wire.topics import Role
from pocache_cli.bootstrap import NetworkPlan, create_network
from pocache_cli.models import TextCodec
from pocache_cli.submit import (
    JsonView,
    Request,
    TextView,
    View,
    choose_model,
    compute_prompt,
    follow,
    make_printable,
    submit,
)

CODEC = TextCodec(
    encode=lambda text: list(text.encode()), decode=lambda tokens: bytes(tokens).decode(errors="replace")
)
NAMES: dict[str, str] = {USER.participant_id: "ada", WORKER.participant_id: "worker-1"}


@pytest.fixture(scope="module")
def network() -> Network:
    return make_network(vocab_size=256)


def make_request(**changes: Any) -> Request:
    fields: dict[str, Any] = {
        "text": "hi",
        "tokens": (),
        "network_dir": ".",
        "name": None,
        "model": None,
        "max_tokens": 8,
        "temperature_micro": 0,
        "seed": None,
        "challenge": False,
    }
    return Request(**{**fields, **changes})


# --- arguments ----------------------------------------------------------------------------------------------


def run(*arguments: str, network_dir: Path | None = None) -> Result:
    where = ["--network-dir", str(network_dir)] if network_dir is not None else []
    return CliRunner().invoke(submit, [*arguments, *where])


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("text", "--tokens", "1,2"),
        ("--tokens", ""),
        ("--tokens", "1,,2"),
        ("--tokens", "1,-2"),
        ("--tokens", "1.5"),
        ("--tokens", str(2**32)),
        ("text", "--max-tokens", "0"),
        ("text", "--max-tokens", str(2**20)),
        ("text", "--temperature", "-0.1"),
        ("text", "--temperature", "101"),
        ("text", "--temperature", "nan"),
        ("text", "--temperature", "warm"),
        ("text", "--temperature", "0.0000001"),
        ("text", "--seed", "-1"),
        ("text", "--seed", str(2**256)),
    ],
)
def test_unusable_arguments_are_exit_code_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error" in result.stderr


def test_arguments_become_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decimals are read exactly; tokens and seeds become what is signed."""
    seen: list[Request] = []

    async def take(request: Request, _view: View) -> bool:
        seen.append(request)
        return True

    monkeypatch.setattr("pocache_cli.submit._run", take)
    arguments = ["--tokens", "1, 2,3", "--as", "ada", "--temperature", "0.7", "--seed", "258", "--challenge"]
    result = run(*arguments, "--max-tokens", "5", network_dir=Path("/net"))
    assert result.exit_code == 0
    (request,) = seen
    assert request == make_request(
        text=None,
        tokens=(1, 2, 3),
        network_dir="/net",
        name="ada",
        max_tokens=5,
        temperature_micro=700_000,
        seed=bytes(30) + b"\x01\x02",
        challenge=True,
    )


def test_a_job_that_was_not_settled_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refund(_request: Request, _view: View) -> bool:
        return False

    async def refuse(_request: Request, _view: View) -> bool:
        raise RefusedError("E204", "too short")

    monkeypatch.setattr("pocache_cli.submit._run", refund)
    assert run("text").exit_code == 1
    monkeypatch.setattr("pocache_cli.submit._run", refuse)
    result = run("text", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"event": "error", "code": "E204", "reason": "too short"}
    assert "E204: too short" in result.stderr


def test_no_network_says_what_to_do(tmp_path: Path) -> None:
    result = run("text", network_dir=tmp_path)
    assert result.exit_code == 2
    assert "pocache up" in result.stderr


def test_a_network_without_a_model_or_user_says_so(tmp_path: Path) -> None:
    create_network(tmp_path, NetworkPlan("test", users=("ada",), workers=()))
    (tmp_path / "nats.url").write_text("nats://127.0.0.1:1")
    result = run("text", network_dir=tmp_path)
    assert (result.exit_code, "none yet" in result.stderr) == (2, True)


def test_a_model_is_chosen_by_name_or_id(network: Network) -> None:
    model = network.model
    assert choose_model(network.models, None) is model
    assert choose_model(network.models, "kit-model") is model
    assert choose_model(network.models, model.model_id.hex()[:8]) is model
    for wanted in ("another", ""):
        with pytest.raises(ConfigError, match="kit-model"):
            choose_model(network.models, wanted)


def test_a_text_needs_a_tokenizer(network: Network) -> None:
    assert compute_prompt(make_request(text="hi"), CODEC, network.model) == (104, 105)
    assert compute_prompt(make_request(text=None, tokens=(1, 2)), None, network.model) == (1, 2)
    with pytest.raises(ConfigError, match=r"--tokens 1,2,3"):
        compute_prompt(make_request(text="hi"), None, network.model)


# --- what is shown ------------------------------------------------------------------------------------------


async def play(side: UserSide, view: View, *, request: Request | None = None, script: Any) -> bool:
    """Follow a job while ``script(job)`` says what the others do."""
    view.begin(CODEC, NAMES)
    asked = request or make_request()
    done = asyncio.ensure_future(follow(side.client, side.network.model, (104, 105), asked, view))
    while not side.bus.published:
        await asyncio.sleep(0)
    (job,) = side.client._jobs.values()
    await script(job)
    return await done


async def settle(side: UserSide, job: Job) -> None:
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.stream(job, list(b"ol\xc3"))
    side.stream(job, list(b"\xa9"), before=list(b"ol\xc3"))
    side.commit(job, list(b"ol\xc3\xa9!"))
    side.pay(job)
    side.tell(job, "settled", detail="agree")


async def test_text_on_stdout_everything_else_on_stderr(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    """A character comes when its last byte has, and the payout by name with what each gained."""
    async with open_user_side(network) as side:
        assert await play(side, TextView(), script=lambda job: settle(side, job))
    shown = capsys.readouterr()
    assert shown.out == "olé!\n"
    lines = shown.err.splitlines()
    assert lines[1:4] == ["generating", "committed", "settled (agree)"]
    assert lines[4].startswith("agree: verified")
    assert [line.split() for line in lines[5:]] == [
        ["ada", "50", "in", "20", "out", "-30"],
        ["worker-1", "50", "in", "80", "out", "+30"],
    ]


def test_a_workers_text_does_not_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Escape sequences are the generator's to write and the terminal's to obey: shown, not sent; kept in a file."""
    text = "a\x1b[2J\tb\r\n\x9b1mé\x7f\x00"
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert make_printable(text) == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert make_printable(text) == "a\ufffd[2J\tb\ufffd\n\ufffd1mé\ufffd\ufffd"


async def test_json_is_one_object_a_line(network: Network, capsys: pytest.CaptureFixture[str]) -> None:
    async with open_user_side(network) as side:
        assert await play(side, JsonView(), script=lambda job: settle(side, job))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_event: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_event.setdefault(line["event"], []).append(line)
    assert by_event["submitted"][0]["prompt_count"] == 2
    assert [line["phase"] for line in by_event["phase"]] == ["generating", "committed", "settled"]
    assert [token for line in by_event["tokens"] for token in line["tokens"]] == list(b"ol\xc3\xa9!")
    (output,) = by_event["output"]
    assert (output["text"], output["finish_reason"]) == ("olé!", "length")
    (payout,) = by_event["payout"]
    assert lines[-1] is payout
    assert (payout["case"], payout["pool_micro"], payout["challenge_refused"]) == ("agree", 100, None)
    assert payout["lines"][1] == {
        "account": WORKER.participant_id,
        "name": "worker-1",
        "held_micro": 50,
        "amount_micro": 80,
    }


async def settle_scored(side: UserSide, job: Job) -> None:
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.score(job, [-1.0, -0.5])
    side.stream(job, list(b"ok"))
    side.commit(job, list(b"ok"))
    side.pay(job)
    side.tell(job, "settled", detail="agree")


async def test_log_probabilities_are_told_where_they_were_asked_for(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the worker's word: in text their mean and the least, as JSON each with its token."""
    asked = make_request(logprobs=True)
    async with open_user_side(network) as side:
        assert await play(side, TextView(), request=asked, script=lambda job: settle_scored(side, job))
    told = "mean log-probability -0.7500 over 2 tokens, the least -1.0000, as the worker says"
    assert told in capsys.readouterr().err.splitlines()
    async with open_user_side(network) as side:
        assert await play(side, JsonView(), request=asked, script=lambda job: settle_scored(side, job))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one for line in lines for one in line.get("logprobs", ())] == [-1.0, -0.5]
    async with open_user_side(network) as side:
        assert await play(side, JsonView(), script=lambda job: settle_scored(side, job))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not any("logprobs" in line for line in lines)


async def test_a_worker_that_says_no_log_probabilities_is_named(
    network: Network, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocache.client.scoring.SCORES_S", 0.0)
    async with open_user_side(network) as side:
        asked = make_request(logprobs=True)
        assert await play(side, TextView(), request=asked, script=lambda job: settle(side, job))
    assert "the worker said no log-probabilities" in capsys.readouterr().err.splitlines()


async def test_a_challenge_is_sent_once_the_result_is_there(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    import hashlib

    async def script(job: Job) -> None:
        side.commit(job, list(b"ok"))
        while len(side.bus.published) < 2:
            await asyncio.sleep(0)
        _, data = side.bus.published[-1]
        assert network.open(data, m.ChallengeRequestV1).attempt == 1
        side.refuse(Role.COMMITMENTS, hashlib.sha256(data).digest(), "E206", "the window is closed")
        side.pay(job, case="no_challenge")
        side.tell(job, "settled", detail="no_challenge")

    async with open_user_side(network) as side:
        assert await play(side, TextView(), request=make_request(challenge=True), script=script)
    assert "the challenge was refused: E206: the window is closed" in capsys.readouterr().err


async def test_a_refund_is_not_a_settlement(network: Network, capsys: pytest.CaptureFixture[str]) -> None:
    async def script(job: Job) -> None:
        side.pay(job, case="refunded")
        side.tell(job, "refunded", detail="no worker took the job in time")

    async with open_user_side(network) as side:
        assert not await play(side, TextView(), script=script)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no worker took the job in time" in shown.err


async def test_a_refusal_ends_it(network: Network) -> None:
    async def script(job: Job) -> None:
        side.refuse(Role.ROUTER, job.message_hash, "E202", "outside the vocabulary")

    async with open_user_side(network) as side:
        with pytest.raises(RefusedError, match="outside the vocabulary"):
            await play(side, TextView(), script=script)


async def test_a_new_attempt_starts_the_text_again(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    async def script(job: Job) -> None:
        side.tell(job, "generating", generator=WORKER.participant_id)
        side.stream(job, list(b"wrong"))
        while not view.has_text:
            await asyncio.sleep(0)
        side.commit(job, list(b"right"), attempt=2)
        side.pay(job)
        side.tell(job, "settled")

    class Watched(TextView):
        has_text = False

        def show_piece(self, piece: Any) -> None:
            super().show_piece(piece)
            self.has_text = True

    view = Watched()
    async with open_user_side(network) as side:
        assert await play(side, view, script=script)
    shown = capsys.readouterr()
    assert shown.out == "wrong\nright\n"
    assert "attempt 2 begins anew" in shown.err


async def test_tokens_are_shown_as_numbers_without_a_tokenizer(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    view = TextView()
    async with open_user_side(network) as side:
        view.begin(None, {})
        job = await side.client.submit(network.model.model_id, (1,), token_count_max=8)
        side.commit(job, [7, 8])
        async for piece in side.client.stream(job):
            view.show_piece(piece)
        view.end_text(job)
    assert capsys.readouterr().out == "7 8 \n"
