"""SQL names for what IDLs call by any name they like.

What belongs here: the rule that makes a name. Names once made are kept in `uho.sql_name` and never made again, so that
a better rule changes no table that exists.
"""

import hashlib
import re
from collections.abc import Collection
from itertools import count

LONGEST_NAME = 55
"""Bytes of a name of ours: Postgres allows 63, and index names add to it."""

KEPT_WHEN_SHORTENED = 46
"""A longer name keeps this many bytes, `_` and 8 hexadecimal characters of the hash of the whole."""

FLAG_COLUMNS = ("failed", "truncated")
"""The last columns of the tables of a program with `include_failed`."""

FIXED_COLUMNS = ("slot", "tx_index", "event_index", "signature", "source", "block_time", *FLAG_COLUMNS)
"""The columns that every event table has, or may have."""

INSTRUCTION_COLUMNS = (
    *("slot", "tx_index", "instruction_index", "signature", "instruction_path", "accounts_given"),
    *("remaining_accounts", "block_time", *FLAG_COLUMNS),
)
"""The columns that every table of an instruction has, or may have."""

INSTRUCTION = "instruction:"
"""What the decoder puts before the name of an instruction."""

SYSTEM_COLUMNS = ("ctid", "xmin", "xmax", "cmin", "cmax", "tableoid")
"""Columns that every table of Postgres has by itself; it refuses others of these names."""


def snake_case(name: str) -> str:
    """Return `name` in snake case: `TradeEvent` → `trade_event`, `AMMSwapV2` → `amm_swap_v2`."""
    name = re.sub(r"([A-Z])([A-Z][a-z])", r"\1_\2", name)
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return name.lower()


def sql_name(name: str, taken: Collection[str] = ()) -> str:
    """Return the SQL name for `name`, which differs from all `taken` ones.

    snake_case; what is not `[a-z0-9_]` becomes `_`; a leading digit gets `_` in front; at most `LONGEST_NAME` bytes; a
    clash gets a suffix from the hash of the name.
    """
    made = re.sub(r"[^a-z0-9_]", "_", snake_case(name)) or "_"
    if made[0].isdigit():
        made = f"_{made}"
    if len(made) <= LONGEST_NAME and made not in taken:
        return made
    for attempt in count():  # one hash is enough, except for names that were made to clash
        salted = name if attempt == 0 else f"{name}\0{attempt}"
        suffix = hashlib.sha256(salted.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        shortened = f"{made[:KEPT_WHEN_SHORTENED]}_{suffix}"
        if shortened not in taken:
            return shortened
    raise AssertionError  # count() does not end


def table_name(event: str, taken: Collection[str] = ()) -> str:
    """Return the table name for an event; for an instruction `ix_<name>`, as for an event of that name."""
    return sql_name(f"ix_{event.removeprefix(INSTRUCTION)}" if event.startswith(INSTRUCTION) else event, taken)


def column_name(field: str, taken: Collection[str] = (), *, instruction: bool = False) -> str:
    """Return the column name for an event's field, or for an instruction's argument or account.

    One called as a fixed column, or as one of Postgres's own, becomes `event_<name>` or `argument_<name>`. Columns of
    an instruction are called as no fixed column of an event either, which tells the tables apart.
    """
    fixed = {*FIXED_COLUMNS, *(INSTRUCTION_COLUMNS if instruction else ())}
    if sql_name(field) in {*fixed, *SYSTEM_COLUMNS}:
        field = f"{'argument' if instruction else 'event'}_{field}"
    return sql_name(field, taken)
