"""The core with the bounds that a configuration sets."""

from imserver import _core
from imserver.config import Config


def make_core(config: Config) -> _core.Core:
    """The core with the bounds of a configuration. ValueError, MemoryError: see `_core.pyi`;
    ConfigError for what this build of it cannot do."""
    limits, beat, web = config.limits, config.heartbeat, config.websocket
    if web.deflate and not _core.HAS_ZLIB:
        rule = "is not in this build: it was made without zlib's header (zlib1g-dev, zlib-devel)"
        raise web.error("deflate", rule)
    return _core.Core(
        threads=config.threads,
        max_connections=limits.max_connections,
        max_frame_bytes=limits.max_frame_bytes,
        hello_bytes=min(limits.hello_bytes, limits.max_frame_bytes),
        handshake_ms=limits.handshake_ms,
        interval_ms=beat.interval_ms,
        timeout_ms=beat.timeout_ms,
        max_missed=beat.max_missed,
        outbox_soft_bytes=limits.outbox_soft_bytes,
        outbox_hard_bytes=limits.outbox_hard_bytes,
        stall_ms=limits.stall_ms,
        subscriptions=limits.subscriptions,
        rights=limits.rights,
        calls=limits.calls,
        pool_bytes=limits.pool_bytes,
        max_message_bytes=web.max_message_bytes,
        deflate=web.deflate,
    )
