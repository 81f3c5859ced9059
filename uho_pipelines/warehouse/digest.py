"""The digest of a chunk's rows in one table, computed in SQL: it finds damage, it is no protection from an adversary.

A row's digest is a 64-bit hash of the row as jsonb without its nulls, so that adding a nullable column leaves old
digests valid; a chunk's digest is the sum over its rows, so that their order does not matter.
"""

from psycopg import sql

from uho_pipelines.warehouse.connection import Connection


def row_digest(connection: Connection, schema: str, table: str, start_slot: int, end_slot: int) -> tuple[int, str]:
    """Return the number of rows of `[start_slot, end_slot)` and their digest (decimal; "0" for none)."""
    query = sql.SQL(
        "SELECT count(*), coalesce(sum(hashtextextended(jsonb_strip_nulls(to_jsonb(t))::text, 0)), 0)::text "
        "FROM {} AS t WHERE slot >= %s AND slot < %s"
    ).format(sql.Identifier(schema, table))
    row = connection.execute(query, [start_slot, end_slot]).fetchone()
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return int(row[0]), str(row[1])
