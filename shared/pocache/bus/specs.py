"""What the provisioner creates: streams and consumers as plain values.

A spec says only what the project decides; everything else keeps the server's default. Built once, compared with
what the server has, never read back from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

Retention = Literal["workqueue", "limits", "interest"]
Discard = Literal["new", "old"]
Storage = Literal["file", "memory"]
DeliverPolicy = Literal["all", "new"]

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
"""One subject token: names stand in subjects and permissions."""


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream. Zero or -1 for a bound means unbounded, as on the server; at least one bound is required.

    ``discard="new"`` answers a publish to a full stream with a refusal; ``"old"`` drops the oldest messages.
    ``max_age_s`` and ``duplicate_window_s`` in seconds; the window is shortened to a shorter age.
    """

    name: str
    subjects: tuple[str, ...]
    retention: Retention = "limits"
    max_msgs: int = -1
    max_bytes: int = -1
    max_age_s: float = 0.0
    max_msgs_per_subject: int = -1
    max_msg_bytes: int = -1
    discard: Discard = "old"
    discard_new_per_subject: bool = False
    deny_delete: bool = False
    deny_purge: bool = False
    duplicate_window_s: float = 120.0
    storage: Storage = "file"
    replicas: int = 1
    allow_direct: bool = True

    def __post_init__(self) -> None:
        assert _NAME.fullmatch(self.name), self.name
        assert self.subjects
        assert self.max_msgs > 0 or self.max_bytes > 0 or self.max_age_s > 0 or self.deny_delete, (
            f"{self.name}: a stream that forgets nothing must say so by deny_delete, any other has a bound"
        )
        assert not (self.retention == "workqueue" and self.deny_delete), "a work queue deletes what is acked"


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """One durable pull consumer with explicit acknowledgement.

    ``max_deliver`` -1 is unlimited; ``backoff_s`` replaces ``ack_wait_s`` for the n-th delivery and needs
    ``max_deliver`` larger than its length. ``max_ack_pending`` bounds what all pullers of it hold together.
    """

    stream: str
    durable: str
    filter_subjects: tuple[str, ...] = ()
    ack_wait_s: float = 30.0
    max_deliver: int = -1
    max_ack_pending: int = 1_000
    backoff_s: tuple[float, ...] = ()
    deliver_policy: DeliverPolicy = "all"

    def __post_init__(self) -> None:
        assert _NAME.fullmatch(self.durable), self.durable
        assert self.ack_wait_s >= 1.0, "nats-server counts acknowledgement waits of redeliveries in seconds"
        assert self.max_ack_pending > 0
        assert not self.backoff_s or self.max_deliver > len(self.backoff_s)
