"""Postgres: connections, tables made from an IDL, loading a chunk, the ledger, migrations."""

from uho_pipelines.warehouse.connection import Connection, connect
from uho_pipelines.warehouse.digest import Damage, find_damage
from uho_pipelines.warehouse.load import ChunkLoad, LoadResult, chunk_load
from uho_pipelines.warehouse.migrate import is_migrated, migrate
from uho_pipelines.warehouse.tables import TablePlan, WarehousePlan, ensure_tables, read_plan

__all__ = [
    "ChunkLoad",
    "Connection",
    "Damage",
    "LoadResult",
    "TablePlan",
    "WarehousePlan",
    "chunk_load",
    "connect",
    "ensure_tables",
    "find_damage",
    "is_migrated",
    "migrate",
    "read_plan",
]
