"""The lake: a chunk's records as Parquet parts, and the manifest that says which of them count.

`<network>/<owner>/<program>/<chunk key>/` holds parts `<from>-<to>-<digest>.parquet`, one per stretch between two
checkpoints (none where there were no records), and `manifest.json`, replaced atomically. A part that no manifest names
is garbage. A row group never splits a block, so that each can be decoded by itself.

What belongs here: keeping records, resuming, reading them back as they were. Where files are is `lake_files.py`'s
business.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import uho_native
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from uho_pipelines.archive import ArchiveStreamError, Certificate, Checkpoint, Done
from uho_pipelines.chunks import Chunk
from uho_pipelines.errors import UhoError
from uho_pipelines.lake_files import LakeFiles
from uho_pipelines.registry import Program
from uho_pipelines.settings import Settings

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
"""Of the records' columns and the manifest; another one is not read."""

ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 32 * 1024 * 1024
"""A row group is closed at the first block that reaches one of these."""

DICTIONARY_COLUMNS = ("slot", "tx_index", "event_index", "block_time", "program", "source", "epoch")
"""Columns whose values come again. A dictionary of signatures or payloads is given up when it is full: a quarter of the
CPU of writing a part went into that."""

NO_RECORDS = "0" * 32
"""The digest of no records."""

WITHOUT_INSTRUCTIONS = (
    "the lake has its events alone, and program.yaml asks for instructions too: the archive is needed again"
)

Say = Callable[[str], None]


class RecordsMissingError(UhoError):
    """A chunk's records are not in the lake, or not all of them."""

    def __init__(self, program: str, chunk: Chunk, reason: str) -> None:
        self.program = program
        self.chunk = chunk
        super().__init__(
            f"{program} chunk {chunk.key}: {reason}. Materialize its records first: "
            f"`uho backfill {program} {chunk.options}`"
        )


class PartAlteredError(UhoError):
    """A part of the lake is not what was written."""

    def __init__(self, program: str, chunk: Chunk, file: str, reason: str) -> None:
        self.program = program
        self.chunk = chunk
        self.file = file
        self.reason = reason
        super().__init__(
            f"lake file {file} is not what was written ({reason}). `uho backfill {program} {chunk.options}` reads the "
            "chunk's records from the archive again, as materializing them does: nothing kept of it is trusted any more"
        )


class KeptPartsDifferError(UhoError):
    """What was read again differs from what was kept; the chunk has to start over."""

    def __init__(self, program: str, chunk: Chunk, start: int, end: int, reason: str) -> None:
        self.program = program
        self.chunk = chunk
        super().__init__(
            f"{program} chunk {chunk.key}: slots [{start}, {end}) read again differ from what was kept ({reason}); "
            "nothing kept can be trusted"
        )


class LakeTakenError(UhoError):
    """Another attempt writes this chunk now."""

    def __init__(self, program: str, chunk: Chunk) -> None:
        self.program = program
        self.chunk = chunk
        super().__init__(f"{program} chunk {chunk.key}: a later attempt writes this chunk's records; this one ends")


class DiskFullError(UhoError):
    """Too little disk is free to begin a chunk."""

    def __init__(self, location: str, free: int, needed: int, reserve: int) -> None:
        self.free = free
        self.needed = needed
        self.reserve = reserve
        super().__init__(
            f"the lake at {location} has {free:,} bytes free; the chunk is estimated at {needed:,} and {reserve:,} "
            "must stay free. Make room, or set UHO_DISK_RESERVE_BYTES or UHO_LAKE_DIR"
        )


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class Stretch(_Model):
    """The slots between two checkpoints; `file` is None where there were no records."""

    start_slot: int
    end_slot: int
    file: str | None
    digest: str
    records: int
    bytes: int
    """Of the file."""
    certificate: dict[str, Any]


class Manifest(_Model):
    """What counts of a chunk's folder."""

    schema_version: Literal[1] = SCHEMA_VERSION
    program: str
    program_id: str
    start_slot: int
    end_slot: int
    checkpoint_slots: int
    verify: Literal["full", "matched", "off"]
    instructions: bool = False
    """Whether the program's instructions are among the records; manifests from before there were any do not say."""
    attempt: str
    """The attempt that wrote last; an older one that finds another id here ends."""
    stretches: list[Stretch] = Field(default_factory=list[Stretch])
    """Ascending, without gaps, from the chunk's start."""
    complete: bool = False
    certificate: dict[str, Any] | None = None
    """Of the whole chunk, once complete."""
    damaged: str | None = None
    """A part that was found altered; the next attempt starts over."""

    @property
    def position(self) -> int:
        """Records of lower slots are kept."""
        return self.stretches[-1].end_slot if self.stretches else self.start_slot

    @property
    def records(self) -> int:
        """Records kept."""
        return sum(stretch.records for stretch in self.stretches)

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(stretch.bytes for stretch in self.stretches)

    @property
    def digest(self) -> str:
        """The digest of all records kept."""
        total = NO_RECORDS
        for stretch in self.stretches:
            total = uho_native.add_digests(total, stretch.digest)
        return total


class Lake:
    """The lake that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self.files = LakeFiles(settings.lake_dir, settings.home / "scratch")
        self.reserve = settings.disk_reserve_bytes

    def chunk(self, program: Program, chunk: Chunk) -> "LakeChunk":
        """Return the folder of a program's chunk."""
        return LakeChunk(self.files, program, chunk)

    def require_space(self, needed: int) -> None:
        """Return if `needed` bytes and the reserve are free (always, where that is unknown).

        Raises:
            DiskFullError: they are not.
        """
        free = self.files.free_bytes()
        if free is not None and free < needed + self.reserve:
            raise DiskFullError(self.files.location, free, needed, self.reserve)


class LakeChunk:
    """The folder of one program's chunk."""

    def __init__(self, files: LakeFiles, program: Program, chunk: Chunk) -> None:
        self.files = files
        self.program = program
        self.chunk = chunk
        self.folder = f"{program.key}/{chunk.key}"

    def manifest(self) -> Manifest | None:
        """Return the manifest; None when there is none, or none that this version reads for this program."""
        content = self.files.read(f"{self.folder}/{MANIFEST}")
        if content is None:
            return None
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError:
            return None
        expected = (self.program.key, self.program.program_id, self.chunk.start, self.chunk.end)
        found = (manifest.program, manifest.program_id, manifest.start_slot, manifest.end_slot)
        return manifest if found == expected and _is_gapless(manifest) else None

    def complete_manifest(self) -> Manifest:
        """Return the manifest of a complete chunk.

        Raises:
            RecordsMissingError: the chunk is not complete.
            PartAlteredError: a part was found altered before.
        """
        manifest = self.manifest()
        if manifest is None:
            raise RecordsMissingError(self.program.key, self.chunk, "the lake has no records of it")
        if manifest.damaged is not None:
            raise self._altered(manifest.damaged, "found before")
        if not manifest.complete:
            reason = f"the lake has its records only up to slot {manifest.position}"
            raise RecordsMissingError(self.program.key, self.chunk, reason)
        if self.program.instructions and not manifest.instructions:
            raise RecordsMissingError(self.program.key, self.chunk, WITHOUT_INSTRUCTIONS)
        return manifest

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest atomically."""
        # What has no instructions is written as it was before there were any.
        unsaid = None if manifest.instructions else {"instructions"}
        content = json.dumps(manifest.model_dump(by_alias=True, exclude=unsaid), separators=(",", ":"))
        self.files.write(f"{self.folder}/{MANIFEST}", content.encode("utf-8"))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the chunk's records, ascending, row group by row group: whole blocks.

        Each part's digest is computed while it is read. Whoever uses a batch must be ready to undo it until the
        iterator has ended: only then is everything known to be as it was written.

        Raises:
            RecordsMissingError: the chunk is not complete.
            PartAlteredError: a part is not what was written; the manifest remembers it.
        """
        manifest = self.complete_manifest()
        for stretch in manifest.stretches:
            if stretch.file is None:
                continue
            try:
                yield from self.read_part(stretch)
            except PartAlteredError:
                self.mark_damaged(manifest, stretch)
                raise

    def mark_damaged(self, manifest: Manifest, stretch: Stretch) -> None:
        """Have the manifest remember that a part is not what was written, so that the next attempt starts over.

        Nothing is written when another attempt has replaced the manifest since it was read.
        """
        if self.manifest() == manifest:
            self.write_manifest(manifest.model_copy(update={"damaged": stretch.file}))

    def read_part(self, stretch: Stretch) -> Iterator[pa.RecordBatch]:
        """Yield a part's row groups.

        Raises:
            PartAlteredError: it is not there, cannot be read, or has other records than were written.
        """
        name = str(stretch.file)
        path = f"{self.folder}/{name}"
        digest, records = NO_RECORDS, 0
        size = self.files.size(path)
        if size is None:
            raise self._altered(name, "it is missing")
        if size != stretch.bytes:
            raise self._altered(name, f"it has {size:,} bytes, written were {stretch.bytes:,}")
        try:
            with self.files.open(path) as source, pq.ParquetFile(source) as parquet:
                schemas = (uho_native.record_schema(accounts=accounts) for accounts in (False, True))
                if not any(parquet.schema_arrow.equals(schema) for schema in schemas):
                    raise self._altered(name, "its columns are no record's")
                for index in range(parquet.num_row_groups):
                    for batch in parquet.read_row_group(index).combine_chunks().to_batches():
                        digest = uho_native.add_digests(digest, uho_native.record_digest(batch))
                        records += batch.num_rows
                        yield batch
        except (OSError, pa.ArrowException) as error:
            raise self._altered(name, f"Parquet cannot read it: {type(error).__name__}") from None
        if (digest, records) != (stretch.digest, stretch.records):
            raise self._altered(name, "its records have another digest")

    def _altered(self, name: str, reason: str) -> PartAlteredError:
        return PartAlteredError(self.program.key, self.chunk, f"{self.folder}/{name}", reason)

    def writer(self, attempt: str, settings: Settings, say: Say) -> "ChunkWriter":
        """Return the writer of this chunk for one attempt; `say` is told whenever kept parts are given up."""
        return ChunkWriter(self, attempt, settings, say)


class ChunkWriter:
    """Writes one program's records of one chunk from a stream, resuming from what an earlier attempt kept.

    `begin`; then per stream `restart`, `write` and `checkpoint` in its order, and `finish`; `close` at the end.
    """

    def __init__(self, folder: LakeChunk, attempt: str, settings: Settings, say: Say) -> None:
        self.folder = folder
        self.program = folder.program
        self.chunk = folder.chunk
        self.say = say
        network = settings.network(folder.program.network)
        self.manifest = Manifest(
            program=self.program.key,
            program_id=self.program.program_id,
            start_slot=self.chunk.start,
            end_slot=self.chunk.end,
            checkpoint_slots=network.checkpoint_slots,
            verify=network.verify,
            instructions=self.program.instructions,
            attempt=attempt,
        )
        self.stream_start = self.position = self.chunk.start
        self._part = _Part(folder, self.chunk.start)

    @property
    def resume_slot(self) -> int:
        """The slot from which a stream has to read: the start of the last kept stretch, which is read again."""
        return self.manifest.stretches[-1].start_slot if self.manifest.stretches else self.chunk.start

    def begin(self, *, start_over: bool = False) -> None:
        """Take the chunk over: keep what can be trusted of an earlier attempt, remove garbage."""
        kept = self.folder.manifest()
        reason = self._fault(kept, start_over=start_over)
        if kept is not None and reason is None:
            self.manifest.stretches = kept.stretches
        elif reason is not None:
            self.say(f"{self.program.key} chunk {self.chunk.key}: starting over, {reason}")
        self.folder.write_manifest(self.manifest)
        self._remove_garbage()

    def start_over(self, reason: str) -> None:
        """Give up what was kept."""
        self.say(f"{self.program.key} chunk {self.chunk.key}: starting over, {reason}")
        self.manifest.stretches = []
        self._save()
        self._remove_garbage()

    def restart(self, start: int) -> None:
        """Be ready for a stream that begins at `start`, the end of a kept stretch or below one."""
        self.close()
        self.stream_start = self.position = start
        self._part = _Part(self.folder, start)

    def write(self, records: pa.RecordBatch) -> int:
        """Take a batch of the stream, of which this program's records are kept; return how many those are."""
        # pyarrow.compute makes its functions when it is imported, so no type checker sees them.
        equal: Any = getattr(pc, "equal")  # noqa: B009
        own = equal(records.column("program"), pa.scalar(self.program.id_bytes, pa.binary(32)))
        batch = records if own.true_count == records.num_rows else records.filter(own)
        columns = len(uho_native.record_schema(accounts=self.program.instructions))
        if batch.num_columns > columns:
            # The stream is shared with a program whose instructions are asked for; this one's accounts are null.
            batch = batch.select(batch.schema.names[:columns])
        self._part.take(batch, keep=self.position >= self.manifest.position)
        return batch.num_rows

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """End a stretch: keep its part, or compare it with the one that is kept.

        Raises:
            ArchiveStreamError: the records are not those of the certificate.
            KeptPartsDifferError: they are not those that were kept.
            LakeTakenError: a later attempt writes this chunk.
        """
        part, start = self._part, self.position
        certificate = self._own(checkpoint.certificate)
        counts = certificate["programs"][self.program.program_id]
        if (counts.get("digest"), counts.get("records")) != (part.digest, part.records):
            raise ArchiveStreamError(
                "records_differ",
                f"{self.program.key}: the records of slots [{start}, {checkpoint.slot}) differ from their certificate",
            )
        if start < self.manifest.position:
            self._compare(start, checkpoint.slot, certificate)
        else:
            file, size = part.publish(checkpoint.slot)
            self.manifest.stretches.append(
                Stretch(
                    start_slot=start,
                    end_slot=checkpoint.slot,
                    file=file,
                    digest=part.digest,
                    records=part.records,
                    bytes=size,
                    certificate=certificate,
                )
            )
            self._save()
        self.position = checkpoint.slot
        self._part = _Part(self.folder, checkpoint.slot)

    def finish(self, done: Done) -> Manifest:
        """Merge the certificates of what was kept before the stream with the stream's, and mark the chunk complete.

        Raises:
            ArchiveStreamError: the certificates do not join up, or do not count what was kept.
        """
        before = [stretch.certificate for stretch in self.manifest.stretches if stretch.end_slot <= self.stream_start]
        try:
            merged = merge_certificates([*before, self._own(done.certificate)])
        except ValueError as error:
            raise ArchiveStreamError(
                "certificate_broken", f"{self.program.key} chunk {self.chunk.key}: {error}"
            ) from None
        counts = merged["programs"][self.program.program_id]
        if (counts["digest"], counts["records"]) != (self.manifest.digest, self.manifest.records):
            reason = f"{self.program.key} chunk {self.chunk.key}: `done` counts other records than were kept"
            raise ArchiveStreamError("certificate_broken", reason)
        self.manifest.certificate = merged
        self.manifest.complete = True
        self._save()
        return self.manifest

    def close(self) -> None:
        """Remove what is being written; what was kept stays."""
        self._part.discard()

    def _fault(self, kept: Manifest | None, *, start_over: bool) -> str | None:
        """Return why nothing kept can be used; None when it can, or nothing is there."""
        if kept is None:
            unreadable = MANIFEST in self.folder.files.names(self.folder.folder)
            return "its manifest cannot be read" if unreadable else None
        if start_over:
            return "as was asked for"
        if kept.damaged is not None:
            return f"{kept.damaged} was found altered"
        if kept.instructions != self.manifest.instructions:
            had, asked = (
                "events and instructions" if both else "events"
                for both in (kept.instructions, self.program.instructions)
            )
            return f"its records are {had}, and program.yaml asks for {asked}"
        for name in ("verify", "checkpoint_slots"):
            before, now = getattr(kept, name), getattr(self.manifest, name)
            if before != now:
                return f"{name} was {before} and is {now}"
        for stretch in kept.stretches:
            if (
                stretch.file is not None
                and self.folder.files.size(f"{self.folder.folder}/{stretch.file}") != stretch.bytes
            ):
                return f"{stretch.file} is missing or has another size"
        last = next((stretch for stretch in reversed(kept.stretches) if stretch.file is not None), None)
        if last is not None:
            try:
                for _ in self.folder.read_part(last):
                    pass
            except PartAlteredError as error:
                return f"{last.file} was altered ({error.reason})"
        return None

    def _own(self, certificate: Certificate) -> Certificate:
        """Return the certificate with only this program's entry."""
        counts = certificate.get("programs", {}).get(self.program.program_id)
        if counts is None:
            raise ArchiveStreamError(
                "certificate_broken", f"{self.program.key}: a certificate does not count this program"
            )
        return {**certificate, "programs": {self.program.program_id: counts}}

    def _compare(self, start: int, end: int, certificate: Certificate) -> None:
        """Compare a stretch that was read again with the kept one; the tail and what follows it may differ."""
        kept = next((stretch for stretch in self.manifest.stretches if stretch.start_slot == start), None)
        if kept is None or kept.end_slot != end:
            raise KeptPartsDifferError(self.program.key, self.chunk, start, end, "checkpoints fall elsewhere")
        for name in ("programs", "blocks", "transactions", "firstBlock", "lastBlockSlot"):
            if kept.certificate.get(name) != certificate.get(name):
                raise KeptPartsDifferError(self.program.key, self.chunk, start, end, f"other {name}")

    def _save(self) -> None:
        current = self.folder.manifest()
        if current is not None and current.attempt != self.manifest.attempt:
            raise LakeTakenError(self.program.key, self.chunk)
        self.folder.write_manifest(self.manifest)

    def _remove_garbage(self) -> None:
        named = {MANIFEST, *(stretch.file for stretch in self.manifest.stretches)}
        for name in self.folder.files.names(self.folder.folder):
            if name not in named:
                self.folder.files.delete(f"{self.folder.folder}/{name}")


class _Part:
    """The part that is being written: row groups are closed at block ends, so none splits a block."""

    def __init__(self, folder: LakeChunk, start: int) -> None:
        self.folder = folder
        self.start = start
        self.digest = NO_RECORDS
        self.records = 0
        self._waiting: list[pa.RecordBatch] = []
        self._aside: Path | None = None
        self._writer: pq.ParquetWriter | None = None

    def take(self, batch: pa.RecordBatch, *, keep: bool) -> None:
        """Count a batch of whole blocks, and write it if it is to be kept."""
        if batch.num_rows == 0:
            return
        self.digest = uho_native.add_digests(self.digest, uho_native.record_digest(batch))
        self.records += batch.num_rows
        if keep:
            self._waiting.append(batch)
            rows = sum(waiting.num_rows for waiting in self._waiting)
            if rows >= ROW_GROUP_ROWS or sum(waiting.nbytes for waiting in self._waiting) >= ROW_GROUP_BYTES:
                self._write_row_group()

    def publish(self, end: int) -> tuple[str | None, int]:
        """Have the part appear under its name; return that and its bytes, (None, 0) for a part without records."""
        self._write_row_group()
        if self._writer is None or self._aside is None:
            return None, 0
        self._writer.close()
        self._writer = None
        name = f"{self.start}-{end}-{self.digest}.parquet"
        size = self._aside.stat().st_size
        self.folder.files.publish(self._aside, f"{self.folder.folder}/{name}")
        self._aside = None
        return name, size

    def discard(self) -> None:
        """Remove what was written aside."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._aside is not None:
            self._aside.unlink(missing_ok=True)
            self._aside = None
        self._waiting = []

    def _write_row_group(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting)
        self._waiting = []
        if self._writer is None:
            self._aside = self.folder.files.aside(self.folder.folder)
            # The standard's name for list items, `element`, would not come back as the record schema's `item`.
            self._writer = pq.ParquetWriter(
                str(self._aside),
                table.schema,
                compression="zstd",
                use_compliant_nested_type=False,
                use_dictionary=list(DICTIONARY_COLUMNS),  # pyright: ignore[reportArgumentType] - of columns, too
            )
        self._writer.write_table(table, row_group_size=table.num_rows)


def merge_certificates(certificates: list[Certificate]) -> Certificate:
    """Return the certificate of consecutive stretches together.

    Raises:
        ValueError: one does not continue the one before, or there is none.
    """
    if not certificates:
        raise ValueError("there is no certificate")
    merged = json.dumps(certificates[0])
    for certificate in certificates[1:]:
        merged = uho_native.merge_certificates(merged, json.dumps(certificate))
    return json.loads(merged)


def _is_gapless(manifest: Manifest) -> bool:
    position = manifest.start_slot
    for stretch in manifest.stretches:
        if (
            stretch.start_slot != position
            or stretch.end_slot <= position
            or (stretch.file is None) != (stretch.records == 0)
        ):
            return False
        if stretch.file is not None and "/" in stretch.file:
            return False
        position = stretch.end_slot
    return position <= manifest.end_slot and (not manifest.complete or position == manifest.end_slot)
