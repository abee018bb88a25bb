"""Sketches keep distances, depend on the job, and refuse what is not finite."""

from __future__ import annotations

import struct

import pytest
import torch

from pocache.numerics.sketch import Sketcher, get_projection
from pocache.protocol.encoding import FloatFormat, RowKind, RowSchema
from pocache.protocol.errors import EngineError

COLUMNS = 64
FROZEN = [[11.0, 0.0, -3.0, 6.0]]
"""Computed with integers from the text of docs/protocol.md 3.6, not by the code under test."""


def build_schema(
    encoding: str = "sketch", float_format: FloatFormat = FloatFormat.F32, width: int = COLUMNS
) -> RowSchema:
    return RowSchema(
        encoding="raw" if encoding == "raw" else "sketch",
        float_format=float_format,
        layer_count=2,
        key_width=width,
        value_width=width,
        hidden_width=width,
    )


def build_sketcher(network: bytes = b"net", seed: bytes = b"seed", job_id: bytes = b"job") -> Sketcher:
    return Sketcher(network, seed, job_id, build_schema())


def draw(count: int, width: int = 512) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(5))


def test_relative_distances_survive() -> None:
    """E of a squared distance is kept; 64 columns spread it by about a sixth."""
    vectors = draw(200)
    moved = vectors + 0.01 * draw(400)[200:]
    sketcher = build_sketcher()
    ours, theirs = sketcher.sketch(RowKind.K, 0, vectors), sketcher.sketch(RowKind.K, 0, moved)
    ratio = ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)) / (
        (vectors - moved).norm(dim=1) / moved.norm(dim=1)
    )
    assert 0.9 < float(ratio.mean()) < 1.1
    assert 0.5 < float(ratio.min()) < float(ratio.max()) < 2.0


@pytest.mark.parametrize("changed", ["network", "seed", "job_id"])
def test_signs_belong_to_the_job(changed: str) -> None:
    vectors = draw(1)
    same = build_sketcher().sketch(RowKind.K, 0, vectors)
    other = build_sketcher(**{changed: b"other"}).sketch(RowKind.K, 0, vectors)
    assert torch.equal(same, build_sketcher().sketch(RowKind.K, 0, vectors))
    assert float((same - other).norm() / same.norm()) > 0.5


def test_signs_differ_by_kind_and_layer() -> None:
    sketcher, vectors = build_sketcher(), draw(1)
    rows = [
        sketcher.sketch(kind, layer, vectors)
        for kind, layer in ((RowKind.K, 0), (RowKind.V, 0), (RowKind.K, 1))
    ]
    for index, row in enumerate(rows):
        assert float((row - rows[index - 1]).norm() / row.norm()) > 0.5


def test_parts_of_a_domain_do_not_run_together() -> None:
    """Length prefixes keep (ab, c) and (a, bc) apart."""
    vectors = draw(1)
    left = build_sketcher(network=b"ab", seed=b"c").sketch(RowKind.K, 0, vectors)
    right = build_sketcher(network=b"a", seed=b"bc").sketch(RowKind.K, 0, vectors)
    assert not torch.equal(left, right)


def test_sketches_are_linear_and_scaled() -> None:
    sketcher, vectors = build_sketcher(), draw(2)
    total = sketcher.sketch(RowKind.V, 1, vectors).sum(dim=0)
    assert torch.allclose(
        total, sketcher.sketch(RowKind.V, 1, vectors.sum(dim=0, keepdim=True))[0], atol=1e-3
    )
    assert torch.equal(get_projection(8, 4, torch.device("cpu")).abs(), torch.full((8, 4), 0.5))


def test_rows_are_little_endian_floats_of_the_schema() -> None:
    vectors = draw(3, COLUMNS)
    for float_format, letter, dtype in (
        (FloatFormat.F16, "e", torch.float16),
        (FloatFormat.F32, "f", torch.float32),
    ):
        sketcher = Sketcher(b"n", b"s", b"j", build_schema("raw", float_format))
        rows = sketcher.encode(RowKind.HIDDEN, 0, vectors)
        assert [list(struct.unpack(f"<{COLUMNS}{letter}", row)) for row in rows] == vectors.to(dtype).tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    vectors = draw(2)
    vectors[1, 3] = value
    with pytest.raises(EngineError, match="not finite"):
        build_sketcher().sketch(RowKind.K, 0, vectors)


def test_what_overflows_float16_is_refused() -> None:
    sketcher = Sketcher(b"n", b"s", b"j", build_schema("sketch", FloatFormat.F16))
    with pytest.raises(EngineError, match="not finite"):
        sketcher.sketch(RowKind.K, 0, draw(1) * 1e6)


def test_raw_rows_of_another_width_are_refused() -> None:
    with pytest.raises(EngineError, match="64 floats"):
        Sketcher(b"n", b"s", b"j", build_schema("raw")).sketch(RowKind.K, 0, draw(1, 32))


def test_a_frozen_sketch() -> None:
    """The signs and the projection are protocol: another implementation must find the same row."""
    sketcher = Sketcher(b"net", b"seed", b"job", build_schema(width=4))
    row = sketcher.sketch(RowKind.V, 1, torch.arange(16, dtype=torch.float32)[None])
    assert row.tolist() == FROZEN
