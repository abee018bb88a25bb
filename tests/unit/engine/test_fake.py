"""What is the fake engine's own: causality to the byte, another model by name, and a hand on its pace."""

from __future__ import annotations

from kit.engines import build_request, build_verification, decode_rows, run_request
from pocache.engine.fake import FakeEngine
from pocache.protocol.challenge import compute_full_corner
from pocache.protocol.commitment import Sampling


def test_verification_reproduces_leaves_bit_for_bit() -> None:
    engine, request = FakeEngine(), build_request()
    capture = run_request(engine, request)
    corner = compute_full_corner(2, len(capture.leaves))
    [verified] = engine.verify([build_verification(request, capture.output, corner)])
    assert verified.leaves == capture.leaves


def test_rows_depend_on_no_later_token() -> None:
    engine, request = FakeEngine(), build_request()
    output = run_request(engine, request).output
    changed = (*output[:4], (output[4] + 1) % 259, *output[5:])
    corner = compute_full_corner(2, len(request.prompt) + len(output) - 1)
    before, after = engine.verify(
        [build_verification(request, tokens, corner) for tokens in (output, changed)]
    )
    first = len(request.prompt) + 4
    assert before.leaves[: first - 1] == after.leaves[: first - 1]
    assert before.leaves[first - 1] != after.leaves[first - 1], "the score row names the delivered token"
    rows = [decode_rows(capture, len(request.prompt)) for capture in (before, after)]
    assert not set(rows[0][first].values()) & set(rows[1][first].values())


def test_another_name_is_another_model() -> None:
    one, two = FakeEngine("one"), FakeEngine("two")
    assert one.capabilities().model_id != two.capabilities().model_id
    assert run_request(one, build_request()).leaves[0] != run_request(two, build_request()).leaves[0]


def test_replaced_weights_keep_the_claim() -> None:
    engine = FakeEngine("one")
    engine.replace_weights("two")
    assert engine.capabilities() == FakeEngine("one").capabilities()
    assert (
        run_request(engine, build_request()).leaves == run_request(FakeEngine("two"), build_request()).leaves
    )


def test_each_token_waits_for_the_test() -> None:
    waits: list[None] = []
    engine = FakeEngine(wait_step=lambda: waits.append(None))
    run_request(engine, build_request(max_tokens=5, sampling=Sampling()))
    assert len(waits) == 5


def test_a_pace_is_no_other_model() -> None:
    """The same weights and the same tokens; only later."""
    slow = FakeEngine("kit@1")
    assert slow.capabilities().model_id == FakeEngine("kit").capabilities().model_id
    assert run_request(slow, build_request()).output == run_request(FakeEngine("kit"), build_request()).output
