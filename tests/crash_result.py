"""What crashes came to: what is left after them against the simulator's truth, and what is told of them.

What belongs here: the comparison of rows, quarantine, lake, ledger and certificates; nothing of how crashes are made.
"""

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from uho_pipelines.chunks import Chunk
from uho_pipelines.lake import Lake
from uho_pipelines.registry import Program
from uho_pipelines.settings import Settings
from uho_pipelines.truth import compare_program, read_truth, truth_by_event
from uho_pipelines.verification import verify_program
from uho_pipelines.warehouse import Connection, connect, read_plan

OF_CHUNK = {
    "slotsWithBlocks": "blocks",
    "blocks": "blocks",
    "entries": "entries",
    "transactions": "transactions",
    "votes": "votes",
    "missingMetadata": "missing_metadata",
    "unresolvedLookups": "unresolved_lookups",
}
"""Counts of a certificate, and what the summary of the truth calls them."""

OF_PROGRAM = {
    "matched": "matched",
    "matchedByLookupOnly": "matched_by_lookup_only",
    "withRecords": "with_records",
    "failed": "failed",
    "truncated": "truncated",
    "unrecorded": "unrecorded",
    "records": "records",
}


@dataclass
class Compared:
    """How much was compared with the truth, and what was found."""

    rows: int = 0
    records: int = 0
    """Of the lake."""
    certificates: int = 0
    lost: int = 0
    """Rows of the truth that no table has."""
    doubled: int = 0
    """Rows that the truth does not have. A table's key is unique: a row twice would be one of these."""
    wrong_certificates: int = 0
    differences: list[str] = field(default_factory=list[str])

    def add(self, other: "Compared") -> None:
        """Add what another comparison found."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass
class Storm:
    """What happened."""

    crashes: Counter[str] = field(default_factory=Counter[str])
    amid: Counter[str] = field(default_factory=Counter[str])
    """What was under way when they came."""
    rounds: int = 0
    failed: list[str] = field(default_factory=list[str])
    """What should have ended well, and did not."""
    resumed: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Seconds from a restart after a crash, or from the crash, to the first work, by what was measured."""
    again: int = 0
    """Chunks of Dagster's that a person had to materialize again, since their run had failed."""
    notes: list[str] = field(default_factory=list[str])
    """Why."""
    compared: Compared = field(default_factory=Compared)

    def resume(self, what: str, seconds: float) -> None:
        """Note how long it took until work was resumed."""
        self.resumed.setdefault(what, []).append(seconds)

    @property
    def is_true(self) -> bool:
        """Whether nothing was lost, doubled or wrong, and nothing failed without a fault."""
        return not (self.failed or self.compared.differences)

    def sentences(self) -> Iterator[str]:
        """Tell of it."""
        kinds = ", ".join(f"{count} {fault}" for fault, count in sorted(self.crashes.items()))
        amid = ", ".join(f"{count} {what}" for what, count in sorted(self.amid.items()))
        yield f"{self.crashes.total()} crashes in {self.rounds} rounds: {kinds}; amid: {amid}"
        for what, times in self.resumed.items():
            seconds = sorted(times)
            high = seconds[int(0.95 * (len(seconds) - 1))]
            yield (
                f"{what}: median {statistics.median(seconds):.1f} s, 95 % {high:.1f} s, most {seconds[-1]:.1f} s "
                f"({len(seconds)} times)"
            )
        found = self.compared
        yield (
            f"compared with the truth: {found.rows:,} rows, {found.records:,} records of the lake, "
            f"{found.certificates:,} certificates: {found.lost} rows lost, {found.doubled} doubled, "
            f"{found.wrong_certificates} certificates wrong, {len(found.differences)} differences in all; "
            f"chunks materialized again by hand: {self.again}"
        )
        yield from (*self.notes, *self.failed, *found.differences)


def compare_with_truth(settings: Settings, archive: Path, program: Program, chunks: Sequence[Chunk]) -> Compared:
    """Compare all that is kept of a program, whose chunks are those of the whole archive, with the archive's truth."""
    result = Compared()
    assert settings.postgres_url is not None
    with connect(settings.postgres_url.get_secret_value(), application_name="truth") as connection:
        _compare_rows(connection, archive, program, result)
        proven = connection.execute(
            "SELECT count(*) FROM uho.chunk_status WHERE (program, status, records_state, events_state) "
            "= (%s, 'proven', 'complete', 'complete')",
            [program.name],
        ).fetchone()
        if proven != (len(chunks),):
            result.differences.append(f"{proven} chunks are proven, not {len(chunks)}")
    summary = json.loads((archive / "truth" / "summary.json").read_text(encoding="utf-8"))
    for chunk in chunks:
        _compare_lake(settings, program, chunk, summary["chunks"][str(chunk.start)], result)
    # The rest of it: ledger against chain, lake and tables; the lake's records against their digests.
    verified = verify_program(settings, program, None, None)
    for found in verified.chunks:
        texts = [finding.text for finding in found.findings] or [f"busy: {found.busy}"]
        result.differences += [f"uho verify, chunk {found.chunk.key}: {text}" for text in texts]
    result.differences += verified.scars
    read = (verified.verified, verified.rows, verified.records)
    if read != (len(chunks), result.rows, result.records):
        result.differences.append(f"uho verify looked at {read} chunks, rows and records")
    return result


def _compare_rows(connection: Connection, archive: Path, program: Program, result: Compared) -> None:
    for one in compare_program(connection, program, read_plan(connection, program), truth_by_event(archive, program)):
        result.rows += one.rows
        result.lost += one.missing
        result.doubled += one.extra
        result.differences += [f"{one.event}: {text}" for text in one.differences]
    quarantined = connection.execute(
        "SELECT slot, tx_index, event_index, signature, length FROM uho.quarantine WHERE program = %s", [program.name]
    ).fetchall()
    names = ("slot", "txIndex", "eventIndex", "signature", "length")
    true = [
        tuple(line[name] for name in names)
        for line in read_truth(archive, "quarantine.jsonl")
        if line["program"] == program.name
    ]
    if sorted(quarantined) != sorted(true):
        result.differences.append(f"the quarantine has {len(quarantined)} rows, the truth {len(true)}, or other ones")


def _compare_lake(
    settings: Settings, program: Program, chunk: Chunk, truth: Mapping[str, Any], result: Compared
) -> None:
    folder = Lake(settings).chunk(program, chunk)
    manifest = folder.complete_manifest()
    result.records += manifest.records
    named = {"manifest.json", *(stretch.file for stretch in manifest.stretches if stretch.file)}
    if left := set(folder.files.names(folder.folder)) ^ named:
        result.differences.append(f"chunk {chunk.key}: files that no manifest names, or that are missing: {left}")
    # The ledger's certificate is the lake's, says `uho verify`.
    certificate = manifest.certificate or {}
    of_program = truth["programs"].get(program.name, {})
    expected = {name: truth[said] for name, said in OF_CHUNK.items()}
    expected |= {name: of_program.get(said, 0) for name, said in OF_PROGRAM.items()}
    found = {name: certificate[name] for name in OF_CHUNK}
    found |= {name: certificate["programs"][program.program_id][name] for name in OF_PROGRAM}
    result.certificates += 1
    if found != expected or certificate["tail"] != "proven":
        result.wrong_certificates += 1
        wrong = {name: (found[name], true) for name, true in expected.items() if found[name] != true}
        result.differences.append(f"chunk {chunk.key}: certificate, and truth: {wrong}, tail {certificate['tail']}")
