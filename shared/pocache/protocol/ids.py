"""Identifiers and digests, each a type of its own so that one is never passed for another."""

from __future__ import annotations

from typing import NewType

Digest = NewType("Digest", bytes)
"""A SHA-256 digest: 32 bytes."""

NetworkId = NewType("NetworkId", bytes)
"""SHA-256 of the genesis configuration: 32 bytes."""

EnvelopeId = NewType("EnvelopeId", bytes)
"""SHA-256 of what an envelope's signature covers, and of who signed it: 32 bytes (docs/protocol.md 2.3)."""

JobId = NewType("JobId", bytes)
"""The envelope id of the user's submission: 32 bytes."""

ModelId = NewType("ModelId", bytes)
"""Digest of a model manifest: weights, configuration, tokenizer: 32 bytes."""

ParticipantId = NewType("ParticipantId", str)
"""An Ed25519 public key in NKey text form: 56 characters that start with ``U``."""

Micro = NewType("Micro", int)
"""An amount of money in millionths of the network's unit."""

Round = NewType("Round", int)
"""The number of a beacon round; the first is 1."""
