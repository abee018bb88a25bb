"""The network's configuration: the genesis that its id is the hash of, and the directory that it is kept in.

The genesis holds what every participant must agree on: who signs for each service, the beacon chain, the rules of
payment, the deadlines. It never changes; another genesis is another network. Models are added later as entries
that the operator signs (``ModelEntryV1``). Refuses unknown fields, and economics under which a payout could be
negative.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from pocache.protocol.beacon import BEACON_ID_DEFAULT, Chain, Scheme
from pocache.protocol.encoding import RowSchema
from pocache.protocol.errors import ConfigError, PocacheError, SignatureError
from pocache.protocol.ids import ModelId, NetworkId, ParticipantId
from pocache.protocol.keys import SigningKey
from pocache.protocol.limits import (
    ATTEMPT_COUNT_MAX,
    BEACON_MEMBERS_MAX,
    SAMPLE_COUNT_MAX,
    WITNESSES_MAX,
)
from pocache.protocol.matching import MatchingProfile, compute_profile_set_digest
from pocache.protocol.payoff import Rational, RuleSet
from pocache.protocol.pricing import PriceList
from pocache.protocol.procedure import Procedure
from pocache.protocol.threshold import Committee
from pocache.runtime.rules import (
    CommitteeRules,
    Rules,
    Ticks,
    UnifiedPoolRules,
    make_default_rules,
    validate_deterrence,
    validate_model_prices,
)
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import ModelEntryV1
from pocache.wire.topics import Role

_DOMAIN: Final = b"pocache/genesis/v1\x00"
_HEX: Final = r"^([0-9a-f]{2})+$"
_PARTICIPANT: Final = r"^U[A-Z2-7]{55}$"
SERVICE_ROLES: Final = (Role.ROUTER, Role.COMMITMENTS, Role.BEACON, Role.VERIFIER, Role.LEDGER, Role.OPERATOR)


def _verify_share(text: str) -> str:
    numerator, denominator = text.split("/")
    if int(numerator) > int(denominator):
        raise ValueError(f"{text} is more than the whole")
    return text


Share = Annotated[str, Field(pattern=r"^[0-9]{1,9}/[1-9][0-9]{0,8}$"), AfterValidator(_verify_share)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", validate_default=True)


class BeaconMember(_Strict):
    """One of a threshold beacon: whose envelopes carry its parts, and the public key of its share."""

    participant: Annotated[str, Field(pattern=_PARTICIPANT)]
    public_share_hex: Annotated[str, Field(pattern=_HEX)]


class ChainConfig(_Strict):
    """The beacon chain: drand's scheme name, its public key, when its rounds are, and where they come from."""

    scheme: str
    public_key_hex: Annotated[str, Field(pattern=_HEX)]
    genesis_s: Annotated[int, Field(ge=0)]
    period_s: Annotated[int, Field(ge=1, le=86_400)]
    genesis_seed_hex: Annotated[str, Field(pattern=_HEX)]
    beacon_id: Annotated[str, Field(max_length=64)] = BEACON_ID_DEFAULT
    source: Literal["local", "threshold", "relay"] = "local"
    """Signed by one key of the network's own, by any ``threshold`` of its ``members``, or passed on from drand."""
    threshold: Annotated[int, Field(ge=0, le=BEACON_MEMBERS_MAX)] = 0
    """t; 0 unless the source is ``threshold``."""
    members: Annotated[tuple[BeaconMember, ...], Field(max_length=BEACON_MEMBERS_MAX)] = ()
    """In the order of their shares; empty unless the source is ``threshold``."""

    @model_validator(mode="after")
    def _verify_members(self) -> Self:
        is_shared = self.source == "threshold"
        if is_shared != bool(self.members) or is_shared != bool(self.threshold):
            raise ValueError(
                "members and a threshold belong to a chain whose source is threshold, and to no other"
            )
        if is_shared and self.scheme != Scheme.BLS_UNCHAINED_G1_RFC9380:
            raise ValueError(f"a threshold beacon signs {Scheme.BLS_UNCHAINED_G1_RFC9380} and nothing else")
        if len({member.participant for member in self.members}) != len(self.members):
            raise ValueError("a participant is a member of the beacon once")
        return self


class AuditConfig(_Strict):
    """How often, how deep and how densely commitments are audited."""

    lottery_share: Share = "1/10"
    full_depth_share: Share = "1/2"
    sample_count: Annotated[int, Field(ge=2, le=SAMPLE_COUNT_MAX // 4)] = 16
    bind_delay_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 3_000
    window_rounds: Ticks = 40
    commitment_lag_rounds_max: Ticks = 2
    """A commitment must name a round at most this many before the one that was current when it arrived."""
    owner_stake_share: Share = "1/3"
    """In sortition all that one owner has staked counts no more than this share of what can be drawn."""


class EjectionConfig(_Strict):
    """What the tests over a worker's audited jobs cost whom they eject (docs/protocol.md 7.8)."""

    bond_share: Share = "1/2"
    """Of all that it has staked, what goes to the treasury."""


class Deadlines(_Strict):
    """Durations in ticks: beacon rounds that arrived while the service that counts them was alive."""

    queue_ticks: Ticks = 200
    lease_ticks: Ticks = 60
    seal_ticks: Ticks = 40
    opening_ticks: Ticks = 20


class Bounds(_Strict):
    """How much the network takes on at once."""

    open_jobs_max: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    submissions_max: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    attempt_max: Annotated[int, Field(ge=1, le=ATTEMPT_COUNT_MAX)] = 3
    submission_age_ms_max: Annotated[int, Field(ge=1_000, le=86_400_000)] = 600_000


class Genesis(_Strict):
    """What a network is. :attr:`network_id` is the SHA-256 of its canonical JSON."""

    version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=64)]
    created_ms: Annotated[int, Field(ge=0)]
    signers: dict[str, Annotated[str, Field(pattern=_PARTICIPANT)]]
    chain: ChainConfig
    rules: Rules = Field(default_factory=make_default_rules)
    audit: AuditConfig = AuditConfig()
    deadlines: Deadlines = Deadlines()
    bounds: Bounds = Bounds()
    demo: bool = False
    """A demonstration network: workers may be told to cheat on it."""
    witnesses: Annotated[
        tuple[Annotated[str, Field(pattern=_PARTICIPANT)], ...], Field(max_length=WITNESSES_MAX)
    ] = ()
    """Who may cosign checkpoints of the commitment log. Without any, the canonical JSON has no such field."""
    ejection: EjectionConfig | None = None
    """Without it nobody is ejected, as in networks of before there was any, and the canonical JSON has no such field."""

    @model_validator(mode="after")
    def _verify_witnesses(self) -> Self:
        if len(set(self.witnesses)) != len(self.witnesses):
            raise ValueError("a witness is named once")
        return self

    @model_validator(mode="after")
    def _verify_unbonding(self) -> Self:
        least = compute_dispute_ticks(self)
        if self.rules.unbonding_ticks <= least:
            raise ValueError(
                f"rules.unbonding_ticks is {self.rules.unbonding_ticks}; it must exceed {least}: lease, window, and "
                f"{self.procedure.look_max} looks, or a stake leaves before its dispute is over"
            )
        return self

    @cached_property
    def network_id(self) -> NetworkId:
        """SHA-256 of the domain and the canonical JSON: sorted keys, no spaces, ASCII."""
        return compute_network_id(self.canonical_json())

    def canonical_json(self) -> bytes:
        """Return the bytes that the network id is the hash of."""
        absent = {name for name in ("witnesses", "ejection") if not getattr(self, name)}
        fields = self.model_dump(exclude=absent)
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")

    @cached_property
    def beacon_chain(self) -> Chain:
        """The chain in the protocol's own form."""
        return Chain(
            scheme=Scheme(self.chain.scheme),
            public_key=bytes.fromhex(self.chain.public_key_hex),
            genesis_s=self.chain.genesis_s,
            period_s=self.chain.period_s,
            genesis_seed=bytes.fromhex(self.chain.genesis_seed_hex),
            beacon_id=self.chain.beacon_id,
        )

    @cached_property
    def beacon_committee(self) -> Committee | None:
        """The members of a threshold beacon in the protocol's own form; None for any other beacon."""
        if self.chain.source != "threshold":
            return None
        return Committee(
            threshold=self.chain.threshold,
            public_key=self.beacon_chain.public_key,
            public_shares=tuple(bytes.fromhex(member.public_share_hex) for member in self.chain.members),
        )

    @cached_property
    def round_signers(self) -> frozenset[ParticipantId]:
        """Whose envelopes may carry a round: the beacon's, or any member's of a threshold beacon."""
        members = [ParticipantId(member.participant) for member in self.chain.members]
        return frozenset(members or [self.signer(Role.BEACON)])

    @cached_property
    def rule_set(self) -> RuleSet:
        """The rules of payment in the protocol's own form. Raises PayoffError that names a violated inequality."""
        return self.rules.build(Rational.parse(self.audit.lottery_share))

    @cached_property
    def procedure(self) -> Procedure:
        """How a dispute goes under these rules."""
        return self.rules.make_procedure()

    @cached_property
    def recheck_share(self) -> tuple[int, int] | None:
        """q_r as numerator and denominator; None under rules that look at no agreement again."""
        return self.rules.recheck_share

    @cached_property
    def bond_share(self) -> tuple[int, int] | None:
        """Share of a stake that an ejection costs, as numerator and denominator; None where nobody is ejected."""
        return None if self.ejection is None else self.share(self.ejection.bond_share)

    def signer(self, role: Role) -> ParticipantId:
        """Return who signs for a service."""
        return ParticipantId(self.signers[role.value])

    def share(self, text: str) -> tuple[int, int]:
        """Return a share such as ``1/20`` as numerator and denominator."""
        numerator, denominator = text.split("/")
        return int(numerator), int(denominator)


def validate_economics(genesis: Genesis) -> None:
    """Refuse rules under which a payout could be negative or a cheat would pay; PayoffError names the inequality."""
    validate_deterrence(genesis.rule_set, Rational.parse(genesis.audit.full_depth_share).value)


def validate_sections(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse the sections of a genesis that is still to be made as :func:`validate_economics` does; ValueError, PayoffError."""
    audit = AuditConfig.model_validate(dict(sections.get("audit", {})))
    rules: UnifiedPoolRules | CommitteeRules = TypeAdapter(Rules).validate_python(
        dict(sections.get("rules", {}))
    )
    full_depth = Rational.parse(audit.full_depth_share)
    validate_deterrence(rules.build(Rational.parse(audit.lottery_share)), full_depth.value)


def compute_network_id(genesis_json: bytes) -> NetworkId:
    """Return SHA-256 of the domain and a genesis's canonical JSON, as the bytes stand (docs/protocol.md 1.5)."""
    return NetworkId(hashlib.sha256(_DOMAIN + genesis_json).digest())


def compute_dispute_ticks(genesis: Genesis) -> int:
    """Return the longest time from a lease to the last word on its job, in ticks (docs/protocol.md 9.10).

    lease + window + looks·(seal + opening + 2 bind): each look waits for two rounds to come, bind = ⌊Δ / period⌋ + 2.
    There are 2K looks under `unified-pool`, as each stage may look twice; under `fixed-fee-committee` two of each try of
    audit and recheck and one of each committee.
    """
    deadlines = genesis.deadlines
    bind_rounds = genesis.audit.bind_delay_ms // (genesis.chain.period_s * 1_000) + 2
    look_ticks = deadlines.seal_ticks + deadlines.opening_ticks + 2 * bind_rounds
    return deadlines.lease_ticks + genesis.audit.window_rounds + genesis.procedure.look_max * look_ticks


class Model:
    """A model that the network serves, from the operator's signed entry.

    Raises ConfigError on an entry that contradicts itself: router and ledger must price a job by the same layers.
    """

    def __init__(self, entry: ModelEntryV1, envelope: bytes = b"") -> None:
        self.entry = entry
        self.envelope = envelope
        """The operator's signed entry, where it is known: what shows strangers whose entry it is."""
        self.model_id = ModelId(entry.model_id)
        self.schema = RowSchema.from_dict(json.loads(entry.row_schema))
        if self.schema.layer_count != entry.layer_count:
            raise ConfigError(f"{entry.layer_count} layers, but rows of {self.schema.layer_count}")
        self.profile = MatchingProfile.from_dict(json.loads(entry.profile))
        self.profile_set = compute_profile_set_digest((self.profile,))
        self.prices = PriceList(
            prompt_token_micro=entry.prompt_token_micro,
            output_token_micro=entry.output_token_micro,
            verify_token_micro=entry.verify_token_micro,
        )


CREDENTIALS_TEXT: Final = (
    "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
    "-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------"
)
"""How every NATS tool writes a seed with its JWT."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Whose certificates a connection trusts, and what it shows for itself where it shows anything (PEM files)."""

    authority: Path
    certificate: Path | None = None
    key: Path | None = None


class NetworkDirectory:
    """``genesis.json``, ``models/*.entry``, ``keys/*.seed``, ``transport/*.seed`` and ``*.jwt``, ``ca.pem``, ``tls/*``: what a process is given of a network."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def genesis(self) -> Genesis:
        """Read and check the genesis. Raises ConfigError that says what to mend."""
        file = self.path / "genesis.json"
        try:
            genesis = Genesis.model_validate_json(file.read_bytes())
            genesis.beacon_chain, genesis.beacon_committee  # noqa: B018 - built here so that a bad value is named here
            validate_economics(genesis)
        except FileNotFoundError:
            raise ConfigError(
                f"no network in {self.path}: run `pocache up`, or set POCACHE_NETWORK_DIR"
            ) from None
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error}") from error
        except (PocacheError, ValueError) as error:
            raise ConfigError(f"{file} is not a genesis: {error}") from error
        missing = [role.value for role in SERVICE_ROLES if role.value not in genesis.signers]
        if missing:
            raise ConfigError(f"{file} names no signer for: {', '.join(missing)}")
        return genesis

    def write_genesis(self, genesis: Genesis) -> None:
        """Write a new network's genesis; refuses to replace another one. Raises PayoffError for stakes that do not deter."""
        validate_economics(genesis)
        file = self.path / "genesis.json"
        if file.exists() and file.read_bytes() != genesis.canonical_json():
            raise ConfigError(f"{file} is another network's genesis: choose an empty directory")
        self.path.mkdir(parents=True, exist_ok=True)
        file.write_bytes(genesis.canonical_json())

    def load_models(self) -> dict[ModelId, Model]:
        """Return the models by id. Raises ConfigError on an entry that the operator did not sign."""
        models: dict[ModelId, Model] = {}
        for file in sorted((self.path / "models").glob("*.entry")):
            try:
                data = file.read_bytes()
                opened = open_envelope(data, self.genesis.network_id, ModelEntryV1)
                if opened.sender != self.genesis.signer(Role.OPERATOR):
                    raise ConfigError(f"{file} is not signed by the operator")
                model = Model(opened.body, data)
                validate_model_prices(self.genesis.rule_set, model.prices)
            except (PocacheError, ValueError, KeyError) as error:
                raise ConfigError(f"{file} is not a model entry of this network: {error}") from error
            models[model.model_id] = model
        return models

    def write_model(self, name: str, envelope: bytes) -> None:
        """Add a model's signed entry."""
        folder = self.path / "models"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.entry").write_bytes(envelope)

    def signing_key(self, name: str) -> SigningKey:
        """Read a participant's protocol key. Raises ConfigError when it is missing or readable by others."""
        return load_signing_key(self.path / "keys" / f"{name}.seed")

    def transport_seed(self, name: str) -> str:
        """Read how a participant proves itself to NATS: its seed, or its seed and user JWT as credentials text."""
        seed = read_secret(self.path / "transport" / f"{name}.seed")
        token = self.path / "transport" / f"{name}.jwt"
        if not token.exists():
            return seed
        return CREDENTIALS_TEXT.format(jwt=read_secret(token), seed=seed)

    def tls_files(self, name: str) -> TlsFiles | None:
        """Return what a participant's TLS connections need, None on a network without TLS.

        Raises ConfigError when its certificate has no key, or a key that others can read.
        """
        authority = self.path / "ca.pem"
        certificate, key = (self.path / "tls" / f"{name}.{kind}" for kind in ("pem", "key"))
        if not authority.exists():
            return None
        if not certificate.exists():
            return TlsFiles(authority)
        read_secret(key)
        return TlsFiles(authority, certificate, key)

    def participants(self) -> Mapping[str, ParticipantId]:
        """Return the names and ids of every key in this directory."""
        return {
            file.stem: load_signing_key(file).participant_id
            for file in sorted((self.path / "keys").glob("*.seed"))
        }


def load_signing_key(file: Path) -> SigningKey:
    """Read an Ed25519 seed in NKey text form from a private file."""
    try:
        return SigningKey.from_seed_text(read_secret(file))
    except SignatureError as error:
        raise ConfigError(f"{file} holds no key: {error}") from error


def read_secret(file: Path) -> str:
    """Return a secret file's text. Raises ConfigError when it is missing, or readable by group or others."""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the key {file}: {error}") from error
    if mode & 0o077:
        raise ConfigError(f"the key {file} has mode {mode:03o}: run `chmod 600 {file}`")
    return text


def write_secret(file: Path, text: str) -> None:
    """Write a new secret file that only its owner can read; refuses to replace one."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(text + "\n")
