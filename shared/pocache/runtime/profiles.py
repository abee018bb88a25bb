"""Whether a model's calibration profile was measured for what its entry says is run: model, rows, dtype, versions, both sides.

Whoever judges or is judged by a profile checks it at the start: limits of another stack convict the honest or let cheats
through, and nothing later would show which. Refuses, on a network that is no demonstration, a profile that does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pocache.protocol.errors import ConfigError
from pocache.runtime.network import Model

_WORDS: Final[Mapping[str, str]] = {
    "model_id": "model",
    "generator_stack": "generator's stack",
    "verifier_stack": "verifier's stack",
    "schema_digest": "row schema",
    "layer_count": "count of layers",
    "vocab_size": "vocabulary",
}


def verify_profile_fits(model: Model, *, is_demo: bool) -> None:
    """Check what a profile says of itself against its model's entry (docs/protocol.md 7.6). Raises ConfigError.

    The stack names dtype, kernels, library versions and hardware, and generators and verifiers of a model run the one of
    its entry. On a demonstration network what the profile leaves out is not asked for.
    """
    wanted: dict[str, str | int] = {
        "model_id": model.model_id.hex(),
        "generator_stack": model.entry.stack,
        "verifier_stack": model.entry.stack,
        "schema_digest": model.schema.digest().hex(),
        "layer_count": model.entry.layer_count,
        "vocab_size": model.entry.vocab_size,
    }
    for name, theirs in wanted.items():
        ours = model.profile.about.get(name)
        if ours == theirs or (ours is None and is_demo):
            continue
        said = (
            "does not say its" if ours is None else f"is for the {_WORDS[name]} {ours}, not for the entry's"
        )
        raise ConfigError(
            f"the profile of {model.entry.name} {said} {_WORDS[name] if ours is None else theirs}: calibrate this model on the"
            " stack that it runs on, and have the operator register the result"
        )
