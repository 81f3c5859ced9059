"""Slot arithmetic: keys, rounding outward, and which chunks of a program exist."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import make_program, make_settings

from uho_pipelines.chunks import (
    SLOT_LIMIT,
    SLOTS_PER_EPOCH,
    Chunk,
    ChunkKeyError,
    chunk_of,
    chunks_between,
    parse_key,
    program_chunks,
)


@given(st.integers(0, SLOT_LIMIT - 1), st.sampled_from([1, 100, 100_000, 432_000]))
def test_a_slot_lies_in_its_chunk_and_the_key_leads_back(slot, slots):
    chunk = chunk_of(slot, slots)
    assert chunk.start <= slot < chunk.end
    assert parse_key(chunk.key, slots) == chunk


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.sampled_from([1, 7, 100]))
def test_chunks_cover_a_range_without_gaps(start, length, slots):
    chunks = list(chunks_between(start, start + length, slots))
    covered = [slot for chunk in chunks for slot in range(chunk.start, chunk.end)]
    assert covered == list(range(covered[0], covered[-1] + 1)) if covered else length == 0
    assert set(range(start, start + length)) <= set(covered)
    assert len(chunks) <= length // slots + 2


@pytest.mark.parametrize(
    "key", ["", "345600000", "0345600001", "00345600000", "034560000x", "-345600000", "٠٣٤٥٦٠٠٠٠٠"]
)
def test_what_is_no_key_is_refused(key):
    with pytest.raises(ChunkKeyError):
        parse_key(key, 100_000)


def test_keys_sort_as_slots_do():
    keys = [chunk.key for chunk in chunks_between(0, 2_000_000, 100_000)]
    assert keys == sorted(keys)
    assert keys[3] == "0000300000"


def test_a_chunk_may_touch_two_epochs():
    assert list(Chunk(400_000, 100_000).epochs) == [0, 1]
    assert list(Chunk(300_000, 100_000).epochs) == [0]


@pytest.mark.parametrize(
    ("first", "last", "tip", "expected"),
    [
        (0, 99, None, ["0000000000"]),
        (50, 100, None, ["0000000000", "0000000100"]),
        (0, None, None, []),
        (SLOTS_PER_EPOCH - 200, None, SLOTS_PER_EPOCH, ["0000431800", "0000431900"]),
        (SLOTS_PER_EPOCH - 200, None, SLOTS_PER_EPOCH + 50, ["0000431800", "0000431900"]),
        (SLOTS_PER_EPOCH - 100, SLOTS_PER_EPOCH + 99, SLOTS_PER_EPOCH, ["0000431900"]),
        (SLOTS_PER_EPOCH, None, SLOTS_PER_EPOCH, []),
    ],
)
def test_a_program_has_chunks_up_to_its_last_slot_and_what_is_published(tmp_path, first, last, tip, expected):
    program = make_program(tmp_path, first_slot=first, last_slot=last)
    assert [chunk.key for chunk in program_chunks(make_settings(tmp_path), program, tip)] == expected


def test_a_chunk_that_reaches_into_an_unpublished_epoch_has_no_key(tmp_path):
    settings = make_settings(tmp_path, networks={"sim": {"chunk_slots": 100_000, "checkpoint_slots": 1_000}})
    program = make_program(tmp_path, first_slot=300_000, last_slot=None)
    assert [chunk.key for chunk in program_chunks(settings, program, SLOTS_PER_EPOCH)] == ["0000300000"]
