"""One small model for all engine tests; building it twice would cost more than most tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kit.engines import build_small_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory that no test may change."""
    torch.set_num_threads(1)
    return build_small_model(tmp_path_factory.mktemp("model"))
