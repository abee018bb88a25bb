"""A calibration profile's signature: whose measurement it is (docs/protocol.md 7.6.7).

Owns the bytes that are signed and the reading of the seed. Refuses a seed file that others can read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pocache.protocol.encoding import lp
from pocache.protocol.errors import ConfigError, SignatureError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.keys import SigningKey, verify_signature
from pocache.protocol.matching import MatchingProfile

PROFILE_DOMAIN: Final = b"pocache/profile-signature/v1"
_OTHERS: Final = 0o077


def sign_description(description: Mapping[str, Any], seed_file: Path) -> dict[str, str]:
    """Return ``signer`` and ``signature`` over the profile's digest and the model. ConfigError."""
    if seed_file.stat().st_mode & _OTHERS:
        raise ConfigError(f"{seed_file} can be read by others: chmod 600 it, and make a new seed")
    try:
        key = SigningKey.from_seed_text(seed_file.read_text(encoding="ascii").strip())
    except (SignatureError, UnicodeDecodeError) as error:
        raise ConfigError(f"{seed_file} has no seed: {error}") from None
    return {"signer": str(key.participant_id), "signature": key.sign(_build_message(description)).hex()}


def verify_description(description: Mapping[str, Any]) -> ParticipantId | None:
    """Return who signed a description, or None for an unsigned one; SignatureError for a wrong signature."""
    if "signature" not in description:
        return None
    signer = ParticipantId(str(description.get("signer")))
    try:
        signature = bytes.fromhex(str(description["signature"]))
    except ValueError as error:
        raise SignatureError(f"the profile's signature is no hex: {error}") from None
    verify_signature(signer, _build_message(description), signature)
    return signer


def _build_message(description: Mapping[str, Any]) -> bytes:
    """The digest is computed from the profile that is there, never taken from beside it."""
    digest = MatchingProfile.from_dict(description["profile"]).digest()
    return lp(PROFILE_DOMAIN, digest, bytes.fromhex(description["model_id"]), description["stack"].encode())
