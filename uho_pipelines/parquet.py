"""Decoded events as Parquet, where a program's program.yaml says `parquet: true`: a file per event and chunk.

`<events>/<network>/<owner>/<program>/<table>/<chunk key>.parquet`; a table's folder is a dataset. Tables and columns
are called as in Postgres. The types are exact: unsigned integers stay unsigned, 128-bit ones are decimal256(39, 0).

What belongs here: writing and removing a chunk's files. Reading them is `reading.py`'s business, where files are
`lake_files.py`'s.

All files of a chunk are written aside while its events are decoded, and renamed just before its rows are committed,
while the attempt still holds the chunk's lock. So no file is half written, and attempts never mix; where the commit
itself fails, the attempt has failed too, and the next one replaces rows and files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import uho_native

from uho_pipelines.chunks import Chunk
from uho_pipelines.lake_files import LakeFiles
from uho_pipelines.registry import Program
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse.tables import TablePlan

FILE_BYTES = 16 * 1024 * 1024
"""A row group is written when so many bytes of one event wait."""

WAITING_BYTES = 64 * 1024 * 1024
"""When so many bytes of all events together wait, all are written."""

ASIDE_FOLDER = ".aside"
"""What is being written is here, beside the tables' folders: readers of datasets pass over names that begin so."""

POSTGRES_TYPE = b"uho:postgres"


def event_files(settings: Settings) -> LakeFiles:
    """Return the files of decoded events."""
    return LakeFiles(settings.events_dir, settings.home / "scratch")


def event_folder(program: Program, table: str) -> str:
    """Return the folder of a table's files, relative to the events' root."""
    return f"{program.network}/{program.owner}/{program.name}/{table}"


def event_path(program: Program, table: str, chunk: Chunk) -> str:
    """Return where a chunk's rows of a table are."""
    return f"{event_folder(program, table)}/{chunk.key}.parquet"


def parquet_schema(schema: pa.Schema, columns: Iterable[str]) -> pa.Schema:
    """Return the schema of a decoded table in Parquet: `columns` are its SQL names, in order.

    What is base58 text in Postgres is that here; seconds become milliseconds, the coarsest that Parquet has.
    """
    fields = [_field(arrow_field, column) for arrow_field, column in zip(schema, columns, strict=True)]
    return pa.schema(fields)


def _field(arrow_field: Any, column: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    kind = arrow_field.type
    if _is_base58(arrow_field):
        kind = pa.string()
    elif pa.types.is_timestamp(kind):
        kind = pa.timestamp("ms", kind.tz)
    return pa.field(column, kind, arrow_field.nullable)


def _is_base58(arrow_field: Any) -> bool:  # noqa: ANN401 - pyarrow has no types
    text = (arrow_field.metadata or {}).get(POSTGRES_TYPE) == b"text"
    return text and pa.types.is_fixed_size_binary(arrow_field.type)


def parquet_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a decoded batch with the columns of `schema`, that `parquet_schema` made."""
    columns = [
        uho_native.base58(array) if _is_base58(decoded) else array.cast(wanted.type)
        for array, decoded, wanted in zip(batch.columns, batch.schema, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@dataclass
class _File:
    """One event's file while it is written."""

    table: TablePlan
    aside: Path | None = None
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.RecordBatch] = field(default_factory=list[pa.RecordBatch])
    bytes: int = 0
    """In `waiting`."""


class EventFiles:
    """One chunk's files. `write` decoded batches, `publish` before the rows are committed, `close` at the end."""

    def __init__(self, files: LakeFiles, program: Program, chunk: Chunk, tables: Iterable[TablePlan]) -> None:
        """Prepare the files of `tables`, in the decoder's order."""
        self.files = files
        self.program = program
        self.chunk = chunk
        self.published = 0
        """How many files were published."""
        self._files = [_File(table) for table in tables]
        self._aside_folder = event_folder(program, ASIDE_FOLDER)

    def write(self, decoded: uho_native.Decoded) -> None:
        """Take one decoded batch."""
        if not self.program.parquet:
            return
        for index, batch in decoded.tables:
            file = self._files[index]
            made = parquet_batch(batch, parquet_schema(batch.schema, file.table.columns))
            file.waiting.append(made)
            file.bytes += made.nbytes
            if file.bytes >= FILE_BYTES:
                self._flush(file)
        if sum(file.bytes for file in self._files) >= WAITING_BYTES:
            for file in self._files:
                self._flush(file)

    def publish(self, tables: Mapping[str, TablePlan], origin: Mapping[str, str]) -> None:
        """Have the chunk's files appear, and remove those of earlier loads.

        `tables` are all that the program ever had. `origin` is kept in each file: of which records, by which IDLs.
        """
        published: set[str] = set()
        for file in self._files:
            self._flush(file)
            if file.writer is not None and file.aside is not None:
                file.writer.add_key_value_metadata({f"uho:{name}": value for name, value in origin.items()})
                file.writer.close()
                self.files.publish(file.aside, event_path(self.program, file.table.name, self.chunk))
                file.writer = file.aside = None
                published.add(file.table.name)
        for table in {plan.name for plan in tables.values()} | {file.table.name for file in self._files}:
            if table not in published:
                self.files.delete(event_path(self.program, table, self.chunk))
        # Nobody else writes this chunk's files while its lock is held: what is left was left by a process that died.
        for name in self.files.names(self._aside_folder):
            if name.startswith(f"{self.chunk.key}-"):
                self.files.delete(f"{self._aside_folder}/{name}")
        self.published = len(published)

    def close(self) -> None:
        """Remove what was not published."""
        for file in self._files:
            if file.writer is not None:
                file.writer.close()
            if file.aside is not None:
                file.aside.unlink(missing_ok=True)

    def _flush(self, file: _File) -> None:
        if not file.waiting:
            return
        table = pa.Table.from_batches(file.waiting)
        file.waiting, file.bytes = [], 0
        if file.writer is None:
            aside = self.files.aside(self._aside_folder)
            file.aside = aside.with_name(f"{self.chunk.key}-{self.program.schema_name}-{aside.name}")
            file.writer = pq.ParquetWriter(str(file.aside), table.schema, compression="zstd")
        file.writer.write_table(table)
