"""Which chunks `uho backfill` takes, and what it says when it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from uho_pipelines.backfill import NoChunksError
from uho_pipelines.chunks import Chunk, select_chunks

CHUNKS = [Chunk(start, 100) for start in (0, 100, 200, 300)]
UHO = Path(sys.executable).parent / "uho"


@pytest.mark.parametrize(
    ("from_slot", "to_slot", "starts"),
    [
        (None, None, [0, 100, 200, 300]),
        (100, 199, [100]),
        (99, 100, [0, 100]),
        (150, 150, [100]),
        (250, None, [200, 300]),
        (None, 0, [0]),
        (400, 500, []),
        (250, 150, []),
    ],
)
def test_slots_are_rounded_outward_to_whole_chunks(
    from_slot: int | None, to_slot: int | None, starts: list[int]
) -> None:
    assert [chunk.start for chunk in select_chunks(CHUNKS, from_slot, to_slot)] == starts


def test_a_range_without_chunks_says_which_there_are() -> None:
    text = str(NoChunksError("sim/demo/vault", 900, 950, CHUNKS))
    assert "slots 0 to 399" in text
    assert "900" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["backfill", "nobody"], "there is no program 'nobody'; registered: sim/demo/orderbook, sim/demo/vault"),
        (["backfill", "vault", "--from-slot", "-1"], "should be greater than or equal to 0"),
        (["backfil"], "No such command"),
    ],
)
def test_a_mistake_gets_one_clear_message_and_no_traceback(tmp_path: Path, arguments: list[str], said: str) -> None:
    environment = {**os.environ, "UHO_HOME": str(tmp_path), "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run([UHO, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
