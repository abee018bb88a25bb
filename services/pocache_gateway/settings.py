"""The gateway's own settings: where it listens, what it bounds, whose accounts it signs for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pocache.protocol.errors import ConfigError
from pocache.runtime.config import Settings, read_number

PORT_DEFAULT: Final = 8_080
BODY_BYTES_MAX_DEFAULT: Final = 1_000_000
CONNECTIONS_MAX_DEFAULT: Final = 2_000


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What one gateway process was told, beside what every process is."""

    host: str = "127.0.0.1"
    port: int = 0
    body_bytes_max: int = BODY_BYTES_MAX_DEFAULT
    """A larger body is refused whatever its key allows."""
    connections_max: int = CONNECTIONS_MAX_DEFAULT
    """Open connections; beyond it the answer is 503, before anything is read."""
    open_jobs_max: int = 1_000
    """Jobs in hand at once; beyond it the answer is 429 with Retry-After."""
    send_timeout_s: float = 30.0
    """How long a client may leave what was sent to it unread before it counts as gone."""
    receipt_wait_s_max: float = 120.0
    """The longest that one request for a receipt waits."""
    reconnect_s: float = 0.0
    """How long a streaming client that went away may take to come back before its job is cancelled."""
    public_url: str = ""
    """What ``receipt_url`` begins with; empty: a path."""


def read_gateway_settings(settings: Settings) -> GatewaySettings:
    """Read the ``POCACHE_GATEWAY_*`` variables. Raises ConfigError naming the one that is wrong."""
    variables = settings.variables

    def number(name: str, default: int, least: int, most: int) -> int:
        return read_number(variables, f"POCACHE_GATEWAY_{name}", default, least, most)

    url = variables.get("POCACHE_GATEWAY_PUBLIC_URL", "").rstrip("/")
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError(f"POCACHE_GATEWAY_PUBLIC_URL is {url!r}; it must begin with http:// or https://")
    return GatewaySettings(
        host=variables.get("POCACHE_GATEWAY_HOST", "127.0.0.1"),
        port=number("PORT", PORT_DEFAULT, 0, 65_535),
        body_bytes_max=number("BODY_BYTES_MAX", BODY_BYTES_MAX_DEFAULT, 1_000, 16_000_000),
        connections_max=number("CONNECTIONS_MAX", CONNECTIONS_MAX_DEFAULT, 1, 1_000_000),
        open_jobs_max=number("OPEN_JOBS_MAX", 1_000, 1, 1_000_000),
        send_timeout_s=number("SEND_TIMEOUT_S", 30, 1, 3_600),
        receipt_wait_s_max=number("RECEIPT_WAIT_S_MAX", 120, 1, 3_600),
        reconnect_s=number("RECONNECT_S", 0, 0, 600),
        public_url=url,
    )
