"""A few crashes of `uho backfill` at random points; `make crash` has hundreds."""

import random
import time

from crash_storm import stage, storm

SEED = 20_261_123


def test_a_backfill_that_is_crashed_again_and_again_ends_with_the_truth(tmp_path):
    tmp_path.chmod(0o711)
    with stage(tmp_path, seed=7, chunks=2) as on:
        result = storm(on, random.Random(SEED), crashes=2, deadline=time.monotonic() + 60)
    assert result.faults == []
    assert result.crashes.total() >= 1
    assert result.crashes["failed without a fault"] == 0
    assert result.rows > 0
