"""`uho dbt-sources`: the `sources.yml` by which a dbt project refers to event tables.

What belongs here: what the warehouse has, in dbt's words (https://docs.getdbt.com/reference/source-properties).
Freshness stands under `config`, as dbt 1.10 and later have it.
"""

from collections.abc import Sequence
from typing import Any

import yaml

from uho_pipelines.registry import Program
from uho_pipelines.warehouse import Connection
from uho_pipelines.warehouse.tables import described_tables

FRESH_DAYS = 7
"""A program that is followed to the tip warns when its newest event is older. The archive publishes whole epochs, of
about two days, some time after they end."""


def dbt_sources(connection: Connection, programs: Sequence[Program]) -> str:
    """Return the sources.yml of the programs that have tables."""
    sources = [source for program in programs if (source := _source(connection, program)) is not None]
    head = "# Written by `uho dbt-sources`; write it again when an IDL version was added.\n"
    return head + yaml.safe_dump({"version": 2, "sources": sources}, sort_keys=False, allow_unicode=True, width=120)


def _source(connection: Connection, program: Program) -> dict[str, Any] | None:
    tables = [
        {
            "name": table.name,
            "description": table.comment or "",
            "columns": [
                {"name": column, "data_type": kind, **_described(table.comments.get(column))}
                for column, kind in table.columns.items()
            ],
        }
        for table in described_tables(connection, program)
    ]
    if not tables:
        return None
    source: dict[str, Any] = {
        "name": program.schema_name,
        "description": f"Events of {program.name} ({program.program_id}) on {program.network}, by uho_pipelines",
        "schema": program.schema_name,
    }
    if program.last_slot is None:
        # A program that ends at a slot is never stale.
        source["config"] = {
            "loaded_at_field": "block_time",
            "freshness": {"warn_after": {"count": FRESH_DAYS, "period": "day"}},
        }
    return {**source, "tables": tables}


def _described(comment: str | None) -> dict[str, str]:
    return {"description": comment} if comment else {}
