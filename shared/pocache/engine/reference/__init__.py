"""The trained model that ships with the project: its name, and where its files lie. README.md beside this is its card.

Torch-free. How it was made is in ``train`` and ``corpus``, which nothing but the making needs. Calibrations of it that ship
with it lie in ``profiles``; each is for one stack, and for any other there is none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pocache.engine.port import Capabilities

REFERENCE_NAME: Final = "reference"
"""What a command takes for it; a directory of that name is ``./reference``."""


def get_reference_dir() -> Path:
    """Return the directory of the model's configuration, weights and tokenizer."""
    return Path(__file__).with_name("model")


def find_shipped_description(capabilities: Capabilities, folder: Path | None = None) -> dict[str, Any] | None:
    """Return the description that ``pocache calibrate`` wrote for this model, schema and stack; None where none ships.

    Each is ``describe``'s JSON. The stack names dtype, kernel, versions and CPU: one that differs in any calibrates by itself.
    """
    wanted = {
        "model_id": capabilities.model_id.hex(),
        "row_schema": capabilities.schema.to_dict(),
        "stack": capabilities.stack,
    }
    for file in sorted((folder or Path(__file__).with_name("profiles")).glob("*.json")):
        found: dict[str, Any] = json.loads(file.read_text(encoding="ascii"))
        about = found["profile"]["about"]
        if all(found[name] == value for name, value in wanted.items()) and (
            about["generator_stack"] == about["verifier_stack"] == capabilities.stack
        ):
            return found
    return None
