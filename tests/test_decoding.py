"""Records are decoded in pieces, none of which splits a block."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from uho_pipelines.decoding import whole_blocks


@settings(deadline=None)
@given(
    blocks=st.lists(st.integers(1, 9), max_size=30),
    rows=st.integers(1, 20),
    size=st.sampled_from([1, 100, 1_000_000]),
    skipped=st.integers(0, 5),
)
def test_pieces_are_whole_blocks_in_order_and_everything(blocks, rows, size, skipped):
    slots = [slot for slot, count in enumerate(blocks) for _ in range(count)]
    records = pa.record_batch({"slot": pa.array(slots, pa.uint64())}).slice(min(skipped, len(slots)))
    pieces = [piece.column("slot").to_pylist() for piece in whole_blocks(records, rows, size)]
    assert [slot for piece in pieces for slot in piece] == records.column("slot").to_pylist()
    assert len({slot for piece in pieces for slot in set(piece)}) == sum(len(set(piece)) for piece in pieces)
    for piece in pieces:
        assert 0 < len(piece) < rows + piece.count(piece[-1])


def test_the_bytes_of_a_piece_are_bounded():
    records = pa.record_batch({"slot": pa.array(range(1_000), pa.uint64()), "payload": [bytes(1_000)] * 1_000})
    pieces = list(whole_blocks(records, 10_000, 100_000))
    assert len(pieces) == 11
    assert max(piece.nbytes for piece in pieces) < 110_000
