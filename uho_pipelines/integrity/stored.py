"""What the warehouse holds of drawn transactions: rows of event tables, and records in quarantine.

What belongs here: reading, of whole slots, since tables are indexed by slot and not by signature.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from psycopg import sql

from uho_pipelines.integrity.comparison import StoredRow, StoredTransaction
from uho_pipelines.integrity.sampling import signature_text
from uho_pipelines.registry import Program
from uho_pipelines.warehouse import Connection, TablePlan, WarehousePlan
from uho_pipelines.warehouse.naming import FLAG_COLUMNS

StoredSlots = Mapping[int, Mapping[str, StoredTransaction]]
"""Slot to signature to what is stored."""


def read_slots(connection: Connection, plan: WarehousePlan, program: Program, slots: Iterable[int]) -> StoredSlots:
    """Return everything that is stored of `program` in `slots`, as of one moment where a transaction is open."""
    wanted = sorted(set(slots))
    found: dict[int, dict[str, StoredTransaction]] = {slot: {} for slot in wanted}
    if not wanted:
        return found
    for event, table in plan.tables.items():
        for slot, signature, row in _rows(connection, event, table, wanted):
            found[slot].setdefault(signature, StoredTransaction()).rows.append(row)
    query = (
        "SELECT slot, signature, event_index, tx_index FROM uho.quarantine "
        "WHERE (network, owner, program) = (%s, %s, %s) AND slot = ANY(%s) AND source <> 'instruction'"
    )
    values = [program.network, program.owner, program.name, wanted]
    for slot, signature, event_index, tx_index in connection.execute(query, values):
        found[slot].setdefault(signature, StoredTransaction()).quarantined[event_index] = tx_index
    return found


def _rows(
    connection: Connection, event: str, table: TablePlan, slots: list[int]
) -> Iterable[tuple[int, str, StoredRow]]:
    fixed = ("slot", "signature", "event_index", "tx_index", "source", "extract(epoch from block_time)::bigint")
    flags = [column for column in FLAG_COLUMNS if column in table.columns]
    fields = list(table.field_columns)
    columns = [sql.Identifier(column) for column in (*flags, *table.field_columns.values())]
    query = sql.SQL("SELECT {} FROM {} WHERE slot = ANY(%s)").format(
        sql.SQL(", ").join([*(sql.SQL(text) for text in fixed), *columns]), sql.Identifier(table.schema, table.name)
    )
    # Binary, so that floats come with the bits that they are stored with.
    with connection.cursor(binary=True) as cursor:
        for slot, signature, event_index, tx_index, source, block_time, *rest in cursor.execute(query, [slots]):
            values: list[Any] = rest
            row = StoredRow(
                event=event,
                event_index=event_index,
                tx_index=tx_index,
                source=source,
                block_time=block_time,
                fields=dict(zip(fields, values[len(flags) :], strict=True)),
                flags=dict(zip(flags, values[: len(flags)], strict=True)),
            )
            yield slot, signature_text(signature), row
