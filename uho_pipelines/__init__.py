"""Backfills a Solana program's whole event history from the Old Faithful archive into Postgres, proved complete."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uho_pipelines.reading import read_events

__all__ = ["read_events"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any attribute
    """Import what people use when they use it: the command line starts without pandas."""
    if name == "read_events":
        from uho_pipelines.reading import read_events

        return read_events
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
