"""The trained model that ships with the project: its name, and where its files lie. README.md beside this is its card.

Torch-free. How it was made is in ``train`` and ``corpus``, which nothing but the making needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

REFERENCE_NAME: Final = "reference"
"""What a command takes for it; a directory of that name is ``./reference``."""


def get_reference_dir() -> Path:
    """Return the directory of the model's configuration, weights and tokenizer."""
    return Path(__file__).with_name("model")
