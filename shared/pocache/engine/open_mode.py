"""Open mode on the engine: packed passes whose visitor looks for given vectors and stops when nothing is left to match.

Owns the search for where a vector lies nearest, in floats on the device. Whether it matches there is decided by
:mod:`pocache.protocol.open_mode`, in whole numbers. One pass takes many questions and goes as deep as the one that is
open longest; no token after the last that a question with indices asks about is run. Refuses what the engine refuses, and
questions of another row schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocache.engine.packing import PACK_TOKENS_MAX, PackItem, compute_packs
from pocache.engine.port import VerifyRequest, verify_verify_request
from pocache.engine.transformers import TransformersEngine
from pocache.numerics.sketch import Sketcher
from pocache.protocol.challenge import Corner
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import RowKind, RowSchema
from pocache.protocol.errors import EngineError
from pocache.protocol.ids import JobId, NetworkId
from pocache.protocol.matching import MatchingProfile
from pocache.protocol.open_mode import OpenAnswer, OpenMatcher, OpenQuestion, OpenVector

_NORM_FLOOR = 1e-30
"""Below any row's norm, so that a zero row has a distance."""


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """One question about one job: what its rows depend on, the known tokens, and the vectors to find."""

    job_id: JobId
    tokens: tuple[int, ...]
    prompt_count: int
    seed: bytes
    network: NetworkId
    question: OpenQuestion


def answer_questions(
    engine: TransformersEngine,
    requests: Sequence[OpenRequest],
    profile: MatchingProfile,
    *,
    pack_tokens_max: int = PACK_TOKENS_MAX,
) -> list[OpenAnswer]:
    """Answer each request, in their order, in as few passes as their sizes allow (docs/protocol.md 15.3).

    PromptError and EngineError for what the engine cannot run, MatchingError for vectors of another schema.
    """
    capabilities = engine.capabilities()
    for request in requests:
        _verify_request(engine, request)
    searches = [_Search(request, profile, capabilities.schema, engine.causal.device) for request in requests]
    packs = [[number] for number in range(len(searches))]
    if engine.causal.is_packable:
        depth = capabilities.layer_count
        items = [PackItem(len(one.tokens), 1 + _get_depth(one.request, depth)) for one in searches]
        packs = compute_packs(items, tokens_max=pack_tokens_max, logits_max=1)
    for pack in packs:
        _run_pack(engine, [searches[number] for number in pack])
    return [search.matcher.answer() for search in searches]


class _Search:
    """One question in a pass: the job's sketches, and the matcher that decides."""

    def __init__(
        self, request: OpenRequest, profile: MatchingProfile, schema: RowSchema, device: torch.device
    ) -> None:
        self.request = request
        self.matcher = OpenMatcher(request.question, schema, profile)
        self.is_open = True
        last = request.question.position_max
        # By causality nothing after the last position that is asked about has to be run.
        self.tokens = request.tokens[: len(request.tokens) - 1 if last is None else last + 1]
        self._sketcher = Sketcher(request.network, request.seed, request.job_id, schema, device)
        self._rows: dict[RowKind, Tensor] = {}
        if request.question.indices is None:
            for kind in (RowKind.K, RowKind.V):
                data = b"".join(vector.get_row(kind) for vector in request.question.vectors)
                dtype = torch.float16 if schema.float_format.size == 2 else torch.float32
                rows = torch.frombuffer(bytearray(data), dtype=dtype).reshape(
                    len(request.question.vectors), -1
                )
                self._rows[kind] = rows.float().to(device)

    def take(self, layer: int, key_TD: Tensor, value_TD: Tensor) -> None:
        """Decide one layer from this job's own K and V."""
        wanted = self.matcher.list_wanted(layer)
        candidates: Mapping[int, Iterable[tuple[int, OpenVector]]] = {}
        if wanted:
            key_TW = self._sketcher.sketch(RowKind.K, layer, key_TD)
            value_TW = self._sketcher.sketch(RowKind.V, layer, value_TD)
            numbers = [number for number, _ in wanted]
            places = [index.position for _, index in wanted if index is not None]
            if not places:
                places = self._find_nearest(numbers, key_TW, value_TW)
            ours = _read_vectors(key_TW[places], value_TW[places])
            candidates = {
                number: [(place, vector)] for number, place, vector in zip(numbers, places, ours, strict=True)
            }
        self.is_open = self.matcher.take(layer, candidates)

    def _find_nearest(self, numbers: Sequence[int], key_TW: Tensor, value_TW: Tensor) -> list[int]:
        """Return for each vector the position whose K and V together lie nearest, relative to the vector's own."""
        total_NT: Tensor | None = None
        for kind, rows_TW in ((RowKind.K, key_TW), (RowKind.V, value_TW)):
            given_NW = self._rows[kind][numbers]
            distance_NT = torch.cdist(given_NW, rows_TW.float(), compute_mode="donot_use_mm_for_euclid_dist")
            relative_NT = distance_NT / given_NW.norm(dim=1, keepdim=True).clamp_min(_NORM_FLOOR)
            total_NT = relative_NT if total_NT is None else total_NT + relative_NT
        assert total_NT is not None
        nearest: list[int] = total_NT.argmin(dim=1).tolist()
        return nearest


def _run_pack(engine: TransformersEngine, searches: Sequence[_Search]) -> None:
    ends = torch.tensor([len(search.tokens) for search in searches]).cumsum(0).tolist()
    windows = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    layer_count = engine.capabilities().layer_count

    def visit(layer: int, key_TD: Tensor, value_TD: Tensor) -> bool:
        if len(key_TD) != ends[-1] or len(value_TD) != ends[-1]:
            raise EngineError("the layers of this model do not each write every position to the cache")
        for search, window in zip(searches, windows, strict=True):
            if search.is_open:
                search.take(layer, key_TD[window], value_TD[window])
        return layer + 1 < layer_count and any(search.is_open for search in searches)

    engine.visit([search.tokens for search in searches], visit)


def _read_vectors(key_NW: Tensor, value_NW: Tensor) -> list[OpenVector]:
    columns = [[row.tobytes() for row in rows.contiguous().cpu().numpy()] for rows in (key_NW, value_NW)]
    return [OpenVector(key, value) for key, value in zip(*columns, strict=True)]


def _get_depth(request: OpenRequest, layer_count: int) -> int:
    deepest = request.question.layer_max
    return layer_count if deepest is None else deepest + 1


def _verify_request(engine: TransformersEngine, request: OpenRequest) -> None:
    """Refuse tokens that the engine cannot run, and indices that lie outside the job."""
    capabilities, leaf_count = engine.capabilities(), len(request.tokens) - 1
    question = request.question
    layer = capabilities.layer_count - 1 if question.layer_max is None else question.layer_max
    position = leaf_count - 1 if question.position_max is None else question.position_max
    verify_verify_request(
        capabilities,
        VerifyRequest(
            job_id=request.job_id,
            tokens=request.tokens,
            prompt_count=request.prompt_count,
            corner=Corner(layer_max=layer, position_max=max(0, position), full_depth=False),
            sampling=Sampling(),
            seed=request.seed,
            network=request.network,
        ),
    )
