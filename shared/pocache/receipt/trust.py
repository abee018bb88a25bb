"""Whom a user trusts: pinned in a file of its own, before any receipt is read (docs/protocol.md 14.2).

A receipt proves what its signers said. Who they must be comes from here and from nowhere else: the network's id, the
operator who signs models and prices, and the beacon chain, whose rounds decide the draws. Calibration profiles may be
pinned too, where a user accepts only thresholds that it has seen. Refused: unknown fields, keys given twice, another
version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pocache.protocol.beacon import Chain
from pocache.protocol.errors import ConfigError, PocacheError
from pocache.protocol.ids import NetworkId
from pocache.protocol.limits import WITNESSES_MAX
from pocache.receipt.strict_json import read_json
from pocache.runtime.network import Genesis
from pocache.wire.topics import Role

TRUST_BYTES_MAX: Final = 262_144
_HEX_DIGEST: Final = r"^[0-9a-f]{64}$"

HexDigest = Annotated[str, Field(pattern=_HEX_DIGEST)]


class TrustRoots(BaseModel):
    """What a user pins."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    version: Literal[1] = 1
    network_id: HexDigest
    operator: Annotated[str, Field(pattern=r"^U[A-Z2-7]{55}$")]
    chain_hash: HexDigest
    chain_scheme: Annotated[str, Field(max_length=64)]
    """drand's name: it is not in the chain hash, so it is pinned beside it."""
    chain_public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{96}([0-9a-f]{96})?$")]
    profiles: Annotated[list[HexDigest], Field(max_length=1_024)] = []
    """Digests of the calibration profiles that are accepted; empty: whichever the operator signed."""
    witnesses: Annotated[list[Annotated[str, Field(pattern=r"^U[A-Z2-7]{55}$")]], Field(max_length=WITNESSES_MAX)] = []
    """Whose cosignatures count; empty: none are asked for."""
    witness_quorum: Annotated[int, Field(ge=0, le=WITNESSES_MAX)] = 0
    """How many of them must have cosigned the checkpoint that a receipt shows."""

    @model_validator(mode="after")
    def _verify_quorum(self) -> Self:
        if len(set(self.witnesses)) != len(self.witnesses):
            raise ValueError("a witness is named once")
        if bool(self.witnesses) != bool(self.witness_quorum) or self.witness_quorum > len(self.witnesses):
            raise ValueError("witnesses and witness_quorum go together, and a quorum is at most all of them")
        return self

    def to_json(self) -> str:
        """Return the file's text."""
        left_out = None if self.witnesses else {"witnesses", "witness_quorum"}
        return self.model_dump_json(indent=1, exclude=left_out) + "\n"


def make_trust(genesis: Genesis, network: NetworkId | None = None) -> TrustRoots:
    """Return the trust roots of a network that whoever calls this has reasons of its own to trust."""
    chain: Chain = genesis.beacon_chain
    return TrustRoots(
        network_id=(network or genesis.network_id).hex(),
        operator=genesis.signer(Role.OPERATOR),
        chain_hash=chain.chain_hash.hex(),
        chain_scheme=chain.scheme.value,
        chain_public_key=chain.public_key.hex(),
    )


def load_trust(file: Path) -> TrustRoots:
    """Read a trust file. Raises ConfigError that says what is wrong with it."""
    try:
        with file.open("rb") as stream:
            data = stream.read(TRUST_BYTES_MAX + 1)
        return TrustRoots.model_validate(read_json(data, bytes_max=TRUST_BYTES_MAX))
    except OSError as error:
        raise ConfigError(f"cannot read the trust file {file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{file} is no trust file: {where}: {first['msg']}") from None
    except PocacheError as error:
        raise ConfigError(f"{file} is no trust file: {error}") from error
