"""The three verdicts on a chunk: are its records complete, did its events decode, does an RPC node say the same.

What belongs here: what passes, warns and fails, and what a person is told to do. `completeness` and `skip_rate` are
evaluated inside the assets' own ops (`assets.py`), `integrity` behind them, per partition; a verdict needs nothing of
Dagster but its words.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import uho_native

from uho_pipelines.archive import Certificate
from uho_pipelines.chunks import Chunk
from uho_pipelines.decoding import INSTRUCTION_REASON, Counts, Unexplained
from uho_pipelines.integrity.outcome import IntegrityOutcome, NotChecked
from uho_pipelines.warehouse.naming import INSTRUCTION

COMPLETENESS = "completeness"
SKIP_RATE = "skip_rate"
INTEGRITY = "integrity"

WARN_ABOVE = 0.05
"""A skip rate over this warns: the IDL may have changed."""

FAIL_ABOVE = 0.25
"""A skip rate over this fails the chunk; its rows are rolled back."""

RECORDS_TO_FAIL = 100
"""With fewer decodable and undecodable records than this, a skip rate warns at most."""

HINTS_SHOWN = 3
"""A verdict names so many discriminators that need another IDL version."""

ROWS_SHOWN = 100
"""A table in metadata has so many rows."""


@dataclass
class Verdict:
    """What a check found: `errors` fail it (and block, where the check does), `warnings` do not; neither: passed."""

    errors: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def blocks(self) -> bool:
        """Whether nothing may be built on the chunk."""
        return bool(self.errors)

    @property
    def text(self) -> str:
        """Every finding, the errors first."""
        return " ".join([*self.errors, *self.warnings])

    def result(self, asset: dg.AssetKey, name: str, chunk: Chunk | None = None) -> dg.AssetCheckResult:
        """Return the verdict as Dagster's check result; of which `chunk`, its page says only in the metadata."""
        place = {} if chunk is None else {"chunk": f"{chunk.key}, slots {chunk.start} to {chunk.end - 1} (inclusive)"}
        return dg.AssetCheckResult(
            asset_key=asset,
            check_name=name,
            passed=not self.errors and not self.warnings,
            severity=dg.AssetCheckSeverity.ERROR if self.errors else dg.AssetCheckSeverity.WARN,
            description=self.text or None,
            metadata={**place, **self.metadata},
        )


def completeness_spec(asset: dg.AssetKey, partitions: dg.PartitionsDefinition[str]) -> dg.AssetCheckSpec:
    """Return the specification of `completeness` on a `records` asset."""
    return dg.AssetCheckSpec(
        COMPLETENESS,
        asset=asset,
        partitions_def=partitions,
        blocking=True,
        description="The certificate holds: none of the chunk's blocks is missing, every byte is what its CID says.",
    )


def skip_rate_spec(asset: dg.AssetKey, partitions: dg.PartitionsDefinition[str]) -> dg.AssetCheckSpec:
    """Return the specification of `skip_rate` on an `events` asset."""
    return dg.AssetCheckSpec(
        SKIP_RATE,
        asset=asset,
        partitions_def=partitions,
        blocking=True,
        description=(
            f"Records that no IDL version decodes exactly: over {WARN_ABOVE:.0%} warns, over {FAIL_ABOVE:.0%} fails "
            f"the chunk (with fewer than {RECORDS_TO_FAIL} records it warns at most)."
        ),
    )


INTEGRITY_DESCRIPTION = (
    "Random transactions, half drawn from stored rows and half from the chain, are the same by an RPC node and another "
    "implementation of the decoder, field by field. Any mismatch fails; a node that serves too little warns."
)


def completeness(certificate: Certificate, chunk: Chunk) -> Verdict:
    """Return whether `certificate` proves the chunk's records complete."""
    verdict = Verdict(metadata={"certificate": certificate_table(certificate)})
    fault = uho_native.certificate_fault(json.dumps(certificate))
    if fault is not None:
        verdict.errors.append(f"The certificate does not hold: {fault}. Materialize the chunk's records again.")
    if (certificate["startSlot"], certificate["endSlot"]) != (chunk.start, chunk.end):
        verdict.errors.append(f"The certificate is not of {chunk}. Materialize the chunk's records again.")
    if certificate["tail"] == "unproven":
        verdict.warnings.append(
            "The first block after the chunk is not published yet, so the chunk's last blocks are not proved. "
            "Materialize the records again when the next epoch is out: only the last stretch is read."
        )
    if certificate["verify"] != "full":
        verdict.warnings.append(
            f"Read with verify: {certificate['verify']}, so a damaged section may have hidden a match. "
            "Set verify to full for this network and materialize the records again."
        )
    if certificate["index"] == "none":
        verdict.warnings.append("Read without an index, so blocks missing at the end cannot be noticed.")
    # Metadata that only other transactions lack is no gap: without lookups their own bytes name all that they call.
    unrecorded = sum(counts.get("unrecorded", 0) for counts in certificate["programs"].values())
    for count, what in (
        (certificate["unresolvedLookups"], "transactions with lookup tables whose addresses could not be resolved"),
        (unrecorded, "transactions of the program without metadata, logs or inner instructions"),
    ):
        if count > 0:
            verdict.warnings.append(
                f"{count:,} {what}: what they did cannot be seen in the archive. "
                "Compare these slots with another source if they matter."
            )
    return verdict


def skip_rate(counts: Counts, events: Mapping[str, str]) -> Verdict:
    """Return whether a chunk's records decoded; `events` maps discriminators (hexadecimal) to event names.

    The rate is taken after twins are folded and failed transactions left out; foreign records are in neither side.
    Instructions have a rate of their own, which warns and never fails: programs have instructions that are none of
    Anchor's and in no IDL, and they must neither halt the events nor hide that events stopped decoding.
    """
    total = counts.events_decoded + counts.events_undecodable
    verdict = Verdict(
        metadata={
            "skip rate": round(counts.skip_rate, 4),
            "decoded": counts.events_decoded,
            "undecodable": counts.events_undecodable,
            "foreign": counts.foreign - counts.instructions.foreign,
            "by event and IDL version": table_metadata(
                {"event": event, "IDL version": idl, "rows": count}
                for (event, idl), count in counts.decoded_by.most_common()
            ),
        }
    )
    if counts.undecodable:
        verdict.metadata["undecodable by discriminator"] = table_metadata(
            {
                "discriminator": discriminator,
                "event": events.get(discriminator, "unknown"),
                "reason": reason,
                "records": count,
                **_place(counts.unexplained.get((discriminator, reason))),
            }
            for (discriminator, reason), count in counts.undecodable_by.most_common()
        )
    if counts.skip_rate > WARN_ABOVE:
        found = f"{counts.events_undecodable:,} of {total:,} records ({counts.skip_rate:.1%}) decode by no IDL version"
        if counts.skip_rate > FAIL_ABOVE and total >= RECORDS_TO_FAIL:
            verdict.errors.append(
                f"{found}: the IDL is not this program's, or it changed. Add the IDL version in force at these slots "
                "to program.yaml and materialize the events again; no archive is read for that."
            )
        else:
            verdict.warnings.append(f"{found}: the IDL may have changed. See uho.quarantine.")
    for event, decoded, undecodable in _dying_events(counts, events):
        verdict.warnings.append(
            f"{_called(event)}: {undecodable:,} of {decoded + undecodable:,} records decode by no IDL version. "
            "Its layout may have changed."
        )
    _instructions(counts, verdict)
    if verdict.text:
        verdict.warnings.extend(version_hints(counts, events))
    if counts.fallbacks:
        fallen_back = sum(fallback.count for fallback in counts.fallbacks.values())
        verdict.warnings.append(
            f"{fallen_back:,} records were decoded by an IDL version that was not in force at their slot. "
            "Correct from_slot in program.yaml if that is not what is meant."
        )
        verdict.metadata["decoded by another IDL version"] = table_metadata(
            {
                "event": event,
                "IDL version": idl,
                "discriminator": discriminator,
                "first slot": fallback.first_slot,
                "last slot": fallback.last_slot,
                "records": fallback.count,
            }
            for (event, idl, discriminator), fallback in sorted(counts.fallbacks.items())
        )
    return verdict


def _instructions(counts: Counts, verdict: Verdict) -> None:
    """Add what became of a chunk's instructions."""
    found = counts.instructions
    if not found.records:
        return
    verdict.metadata |= {
        "instructions": found.records,
        "instructions decoded": found.decoded,
        "instructions undecodable": found.undecodable,
        "instructions foreign": found.foreign,
        "instructions of failed transactions left out": found.failed_left_out,
        "instructions short of accounts": found.short_of_accounts,
        "instructions with unknown accounts": found.unknown_accounts,
        "instructions skip rate": round(found.skip_rate, 4),
    }
    if found.skip_rate > WARN_ABOVE:
        verdict.warnings.append(
            f"{found.undecodable:,} of {found.decoded + found.undecodable:,} instructions ({found.skip_rate:.1%}) "
            "decode by no IDL version: the IDL may have changed, or lack some. See uho.quarantine, source instruction."
        )
    if found.short_of_accounts:
        verdict.warnings.append(
            f"{found.short_of_accounts:,} instructions were given fewer accounts than any IDL version that reads them "
            "demands; the columns of the others are null. The IDL version in force may be missing."
        )
    if found.unknown_accounts:
        verdict.warnings.append(
            f"{found.unknown_accounts:,} instructions have accounts that cannot be resolved: theirs are null."
        )


def integrity(outcome: IntegrityOutcome | NotChecked) -> Verdict:
    """Return whether a chunk's samples are what the RPC node says; nothing compared is never a pass."""
    if isinstance(outcome, NotChecked):
        return Verdict(warnings=[outcome.reason])
    counts = outcome.counts()
    samples = len(outcome.samples)
    reasons = Counter(
        f"{sample.outcome}: {sample.comparison.reason}" for sample in outcome.samples if sample.comparison.reason
    )
    listed = "not asked" if outcome.blocks_known is None else outcome.blocks_known
    verdict = Verdict(
        metadata={
            "samples": samples,
            **counts,
            "rows compared": sum(sample.comparison.events for sample in outcome.samples),
            "blocks looked at": outcome.blocks_read,
            "blocks of the chunk, says the node": listed,
            "blocks of the chunk, says the certificate": outcome.blocks_proved,
            "seed": str(outcome.seed),
            "job": f"{outcome.job.name}, chunk {outcome.job.place + 1} of {outcome.job.chunks}",
            "RPC node": outcome.node,
            "RPC requests": outcome.http_requests,
            "seconds": round(outcome.seconds, 3),
            "compared": dg.MetadataValue.md(_sample_table(outcome)),
        }
    )
    if reasons:
        verdict.metadata["reasons"] = dict(reasons.most_common())
    if counts["mismatch"]:
        verdict.metadata["differences"] = dg.MetadataValue.md(_difference_table(outcome))
        verdict.errors.append(
            f"{counts['mismatch']} of {samples} transactions differ from what the RPC node says (see differences). "
            "Materialize the chunk's events again; if they differ still, its records, and then look at the node."
        )
    if outcome.blocks_known is not None and outcome.blocks_known > outcome.blocks_proved:
        verdict.errors.append(
            f"The RPC node lists {outcome.blocks_known:,} slots with blocks, the certificate only "
            f"{outcome.blocks_proved:,}: the archive lacks blocks. Materialize the records again, starting over."
        )
    if counts["not served"] * 2 > samples:
        verdict.warnings.append(
            f"{counts['not served']} of {samples} samples were not served by the RPC node (see reasons). "
            "Use one that keeps this part of the history."
        )
    elif samples and counts["verified"] + counts["mismatch"] == 0:
        verdict.warnings.append(f"None of {samples} samples could be compared (see reasons).")
    return verdict


def certificate_table(certificate: Certificate) -> dg.TableMetadataValue:
    """Return a certificate as a table of two columns: what, and how much."""
    rows: dict[str, str] = {}
    for name, value in certificate.items():
        if name == "programs":
            for program, counts in value.items():
                rows["program"] = program
                rows.update({f"{name} of the program": _shown(count) for name, count in counts.items()})
        elif isinstance(value, dict):
            rows[name] = f"slot {value['slot']}, its parent slot {value['parentSlot']}"
        else:
            rows[name] = _shown(value)
    return table_metadata({"what": name, "value": value} for name, value in rows.items())


def version_hints(counts: Counts, events: Mapping[str, str]) -> list[str]:
    """Return which discriminators another IDL version would have to explain, and since when: events first."""
    return [
        f"Another IDL version is needed for {events.get(discriminator, 'an event that no version has')} "
        f"({discriminator}): {counts.undecodable_by[discriminator, reason]:,} records since slot {found.first_slot} "
        f"(to {found.last_slot} here), {found.bytes} bytes unexplained ({reason})."
        for (discriminator, reason), found in sorted(
            counts.unexplained.items(),
            key=lambda item: (item[0][1].startswith(INSTRUCTION_REASON), -counts.undecodable_by[item[0]]),
        )[:HINTS_SHOWN]
    ]


def _place(found: Unexplained | None) -> dict[str, int | str]:
    if found is None:
        return {}
    return {"first slot": found.first_slot, "last slot": found.last_slot, "unexplained bytes": found.bytes}


def _sample_table(outcome: IntegrityOutcome) -> str:
    """Return the samples as Markdown."""
    lines = ["| side | slot | signature | outcome | rows | reason |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {sample.side} | {'' if sample.slot is None else sample.slot} | {sample.signature or ''} | {sample.outcome} "
        f"| {sample.comparison.events} | {_cell(sample.comparison.reason)} |"
        for sample in outcome.samples[:ROWS_SHOWN]
    ]
    return "\n".join(lines)


def _difference_table(outcome: IntegrityOutcome) -> str:
    """Return every field that differs as Markdown; the texts are of the chain and of an IDL, so hostile."""
    lines = ["| signature | record | event | field | stored | chain |", "|---|---|---|---|---|---|"]
    differing = ((sample, found) for sample in outcome.samples for found in sample.comparison.differences)
    for _, (sample, found) in zip(range(ROWS_SHOWN), differing, strict=False):
        cells = [found.event, found.field, found.stored, found.chain]
        index = "" if found.event_index is None else found.event_index
        lines.append(f"| {sample.signature or ''} | {index} | {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return text that Markdown shows as it is, in one cell of a table."""
    plain = re.sub(r"\s+", " ", "".join(letter if letter.isprintable() else " " for letter in text))
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", plain)


def _called(event: str) -> str:
    if event.startswith(INSTRUCTION):
        return f"Instruction {event.removeprefix(INSTRUCTION)}"
    return f"Event {event}"


def _dying_events(counts: Counts, events: Mapping[str, str]) -> list[tuple[str, int, int]]:
    """Return (event, decoded, undecodable) of events whose own rate is too high, whatever the mean says."""
    undecodable: Counter[str] = Counter()
    for (discriminator, _), count in counts.undecodable_by.items():
        if discriminator in events:
            undecodable[events[discriminator]] += count
    decoded = counts.rows_by_event()
    return [
        (event, decoded.get(event, 0), count)
        for event, count in sorted(undecodable.items())
        if count / (decoded.get(event, 0) + count) > WARN_ABOVE
    ]


def _shown(value: Any) -> str:  # noqa: ANN401 - a value of JSON
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return (
        "none" if value is None else ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
    )


def table_metadata(rows: Any) -> dg.TableMetadataValue:  # noqa: ANN401 - rows are dicts of texts and numbers
    """Return `rows` as a table in metadata, cut after `ROWS_SHOWN`."""
    records = [dg.TableRecord(row) for _, row in zip(range(ROWS_SHOWN), rows, strict=False)]
    columns = list(records[0].data) if records else ["nothing"]
    types: dict[type, str] = {str: "string", int: "int", float: "float"}
    first = records[0].data if records else {}
    schema = dg.TableSchema(
        columns=[dg.TableColumn(name, types.get(type(first.get(name, "")), "string")) for name in columns]
    )
    return dg.MetadataValue.table(records=records, schema=schema)
