"""What passes, what warns and what blocks."""

import pytest
from streams import certificate, program_id

from uho_pipelines.checks import Verdict, completeness, skip_rate
from uho_pipelines.chunks import Chunk
from uho_pipelines.decoding import Counts, Fallback, Unexplained

ALPHA = program_id("alpha")
CHUNK = Chunk(100, 100)
EVENTS = {"aa": "Alive", "dd": "Dead"}


def proof(**changes):
    whole = {"tail": "proven", "nextBlock": {"slot": 200, "parentSlot": 199}, **changes}
    return certificate(100, 200, [], [ALPHA], **whole)


def grade(verdict: Verdict) -> str:
    return "error" if verdict.errors else "warn" if verdict.warnings else "pass"


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({}, "pass", ""),
        ({"tail": "unproven", "nextBlock": None}, "warn", "next epoch"),
        ({"verify": "off", "cidsVerified": 0}, "warn", "verify: off"),
        ({"verify": "matched"}, "warn", "verify: matched"),
        ({"index": "none"}, "warn", "without an index"),
        ({"unresolvedLookups": 2}, "warn", "2 transactions with lookup tables"),
        ({"missingMetadata": 1}, "pass", ""),
        ({"index": "slot-to-cid"}, "pass", ""),
        ({"blocks": 99}, "error", "does not hold"),
        ({"firstBlock": {"slot": 100, "parentSlot": 100}}, "error", "does not hold"),
        ({"nextBlock": {"slot": 200, "parentSlot": 198}}, "error", "does not hold"),
        ({"tail": "unread", "nextBlock": None}, "error", "does not hold"),
        ({"endSlot": 300}, "error", "does not hold"),
    ],
)
def test_completeness_follows_the_certificate(changes, expected, words):
    verdict = completeness(proof(**changes), CHUNK)
    assert (grade(verdict), words in verdict.text) == (expected, True), verdict.text


def test_transactions_of_the_program_without_metadata_warn():
    made = proof(missingMetadata=1)
    made["programs"][str(ALPHA)].update(matched=3, unrecorded=2)
    verdict = completeness(made, CHUNK)
    assert (grade(verdict), "2 transactions of the program without metadata" in verdict.text) == ("warn", True)


def test_a_certificate_of_other_slots_proves_nothing():
    assert grade(completeness(proof(), Chunk(200, 100))) == "error"


def counts(decoded, undecodable, **changes):
    made = Counts(records=decoded + undecodable, decoded=decoded, undecodable=undecodable, **changes)
    made.decoded_by["Alive", "idl.json"] = decoded
    made.undecodable_by["ff", "unknown_discriminator"] = undecodable
    return made


@pytest.mark.parametrize(
    ("decoded", "undecodable", "expected"),
    [
        (0, 0, "pass"),
        (100, 0, "pass"),
        (95, 5, "pass"),
        (94, 6, "warn"),
        (75, 25, "warn"),
        (74, 26, "error"),
        (0, 100, "error"),
        (0, 99, "warn"),
        (50, 49, "warn"),
        (1, 0, "pass"),
    ],
)
def test_the_skip_rate_warns_over_5_and_fails_over_25_percent_of_100_records(decoded, undecodable, expected):
    assert grade(skip_rate(counts(decoded, undecodable), EVENTS)) == expected


def test_foreign_records_twins_and_failed_ones_are_on_neither_side():
    made = counts(100, 0, foreign=900, twins_folded=900, failed_left_out=900)
    assert made.skip_rate == 0
    assert grade(skip_rate(made, EVENTS)) == "pass"


def test_a_dead_event_cannot_hide_in_a_healthy_mean():
    made = counts(1000, 0)
    made.undecodable, made.undecodable_by["dd", "trailing_bytes"] = 10, 10
    verdict = skip_rate(made, EVENTS)
    assert made.skip_rate < 0.05
    assert (grade(verdict), "Event Dead: 10 of 10 records" in verdict.text) == ("warn", True)


def test_records_decoded_by_a_version_not_in_force_warn():
    made = counts(100, 0)
    made.fallbacks["Alive", "old.json", "aa"] = Fallback(100, 150, 7)
    verdict = skip_rate(made, EVENTS)
    assert (grade(verdict), "7 records were decoded by an IDL version" in verdict.text) == ("warn", True)
    row = verdict.metadata["decoded by another IDL version"].records[0].data
    assert (row["first slot"], row["last slot"]) == (100, 150)


def test_a_hint_says_which_event_needs_another_version_since_when_and_for_how_much():
    made = counts(10, 60)
    made.undecodable_by["dd", "trailing_bytes"] = 40
    made.unexplained["dd", "trailing_bytes"] = Unexplained(120, 180, 8, 8)
    made.unexplained["ff", "unknown_discriminator"] = Unexplained(100, 199, 3, 1_000)
    assert (
        "Another IDL version is needed for an event that no version has (ff): 60 records since slot 100 (to 199 here), "
        "3 to 1,000 bytes unexplained (unknown_discriminator). Another IDL version is needed for Dead (dd): 40 records "
        "since slot 120 (to 180 here), 8 bytes unexplained (trailing_bytes)."
    ) in skip_rate(made, EVENTS).text
    (unknown, dead) = [row.data for row in skip_rate(made, EVENTS).metadata["undecodable by discriminator"].records]
    assert (unknown["unexplained bytes"], dead["first slot"], dead["last slot"]) == ("3 to 1,000", 120, 180)


def test_what_did_not_decode_is_shown_by_discriminator():
    made = counts(10, 3)
    made.undecodable_by["dd", "trailing_bytes"] = 2
    shown = [record.data for record in skip_rate(made, EVENTS).metadata["undecodable by discriminator"].records]
    assert shown == [
        {"discriminator": "ff", "event": "unknown", "reason": "unknown_discriminator", "records": 3},
        {"discriminator": "dd", "event": "Dead", "reason": "trailing_bytes", "records": 2},
    ]
