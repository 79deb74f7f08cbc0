"""The time as image configs write it."""

from datetime import UTC, datetime


def timestamp() -> str:
    """Now, in RFC 3339 with microseconds, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
