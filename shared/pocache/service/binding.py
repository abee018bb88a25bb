"""To which round an event is bound: never one that was due, or known here, when the event happened."""

from __future__ import annotations

from pocache.protocol.beacon import bind_round
from pocache.runtime.network import Genesis
from pocache.service.unit import Unit


def bind_event(genesis: Genesis, unit: Unit, event_ms: int) -> int:
    """Return the round that an event of this moment is bound to (docs/protocol.md 5.4.3).

    bind(t), and later than all rounds known here. The later of the event's time and this machine's counts, so that no
    clock that lags makes a known round decide.
    """
    bound = bind_round(genesis.beacon_chain, max(event_ms, unit.now_ms), genesis.audit.bind_delay_ms)
    return max(bound, unit.get_latest_round() + 1)
