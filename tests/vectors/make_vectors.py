"""Make the vectors that both verifiers are held against: ``python tests/vectors/make_vectors.py``, from the repository.

Everything follows from fixed seeds: the same files come out every time, and a test says so. What they contain is in
README.md beside them, how it is made in ``kit.vectors``. To be run again when the protocol gets another version, and then
with other names of files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / name) for name in ("tests", "shared", "services")]

from kit.vectors.committees import make_committees  # noqa: E402
from kit.vectors.draws import make_payoffs, make_sortition  # noqa: E402
from kit.vectors.envelopes import make_envelopes  # noqa: E402
from kit.vectors.proofs import make_merkle  # noqa: E402
from kit.vectors.rows import make_distances, make_leaves  # noqa: E402
from kit.vectors.words import Sections  # noqa: E402

FOLDER: Final = Path(__file__).parent
VERSION: Final = 1

MAKERS: Final[dict[str, Callable[[], Sections]]] = {
    "leaves_v1": make_leaves,
    "distances_v1": make_distances,
    "merkle_v1": make_merkle,
    "envelopes_v1": make_envelopes,
    "sortition_v1": make_sortition,
    "payoffs_v1": make_payoffs,
    "committee_v1": make_committees,
}


def write_text(name: str) -> str:
    """Return the text of one file."""
    sections = MAKERS[name]()
    parts = [f'"version":{VERSION}']
    for section, cases in sections.items():
        lines = ",\n ".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
        parts.append(f'"{section}":[\n {lines}\n]')
    return "{" + ",\n".join(parts) + "}\n"


def main() -> None:
    """Write every file."""
    for name in MAKERS:
        text = write_text(name)
        (FOLDER / f"{name}.json").write_text(text, encoding="ascii")
        print(f"{name}.json: {len(text)} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
