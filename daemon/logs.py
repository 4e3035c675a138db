"""Structured logs: one JSON object per line on stderr, where systemd's journal collects them.

What is worth a line is for the caller to say. Keys that name a secret are masked here, always.
"""

import logging
import sys
from functools import lru_cache
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

_SECRET_WORDS = ("secret", "token", "password", "pin", "totp", "authorization", "cookie")
_MASK = "***"
_encoder = msgspec.json.Encoder(enc_hook=str)


def configure_logs(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send every log line of this process to `stream` (default stderr) from `level` up.

    Raises ValueError for an unknown level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"log level {level!r} is unknown: use DEBUG, INFO, WARNING or ERROR")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            mask_secrets,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=True,
    )


def get_logger(**context: object) -> FilteringBoundLogger:
    """Return a logger that adds `context` to each of its lines."""
    logger: FilteringBoundLogger = structlog.get_logger(**context)
    return logger


def mask_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace the value of every key, at any depth, whose name holds a word for a secret."""
    return {key: _masked(key, value) for key, value in event.items()}


def _masked(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {inner: _masked(str(inner), entry) for inner, entry in value.items()}
    return _MASK if _is_secret(key) else value


@lru_cache(maxsize=1024)  # keys are names in the code: there are few
def _is_secret(key: str) -> bool:
    words = key.lower().replace("-", "_").split("_")
    return any(word in words for word in _SECRET_WORDS)


def _render(_: WrappedLogger, __: str, event: EventDict) -> str:
    return _encoder.encode(event).decode()
