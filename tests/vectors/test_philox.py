"""Known answers of Philox4x32-10 (Random123's kat_vectors), and frozen answers of the noise."""

from __future__ import annotations

import pytest
import torch

from pocache.numerics.philox import compute_gumbel, compute_key, compute_philox

ONES = 0xFFFFFFFF
KEY = (844338272, 3995028143)
NOISE = [
    [
        "0x1.37ad9a0000000p-3",
        "0x1.1127aa0000000p-2",
        "-0x1.61fe680000000p-1",
        "0x1.810b1c0000000p+0",
        "0x1.0d93100000000p+0",
        "0x1.ce65d80000000p+0",
    ],
    [
        "0x1.30d9620000000p-3",
        "0x1.03eb1c0000000p-2",
        "-0x1.7eec2a0000000p-1",
        "0x1.7199840000000p+1",
        "0x1.fc69d80000000p+0",
        "-0x1.0eaf580000000p-2",
    ],
    [
        "-0x1.b071220000000p-1",
        "0x1.98daae0000000p-1",
        "-0x1.f6864e0000000p-2",
        "0x1.e606180000000p-1",
        "0x1.686a100000000p+1",
        "-0x1.38bbf60000000p-1",
    ],
]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES,) * 4, (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: str
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    block = compute_philox((c0, c1, c2, c3), key)
    assert " ".join(f"{int(word):08x}" for word in block[0]) == expected


def test_gumbel_noise_is_frozen() -> None:
    """Seed, position and vocabulary index lead to these float32 numbers, whatever the machine."""
    noise = compute_gumbel(bytes(range(32)), torch.tensor([0, 7, 2**33 + 7]), 6)
    assert compute_key(bytes(range(32))) == KEY
    assert [[value.hex() for value in row] for row in noise.double().tolist()] == NOISE
