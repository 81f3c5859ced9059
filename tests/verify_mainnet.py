"""`make verify-mainnet`: does the reader read the public archive as it is today?

What belongs here: which slots are read, and what must be true of them. Run by hand, where there is internet; the same
logic is tested against a simulated archive behind HTTP in `test_verify_mainnet.py`. About 20 MB are read, of which two
indexes are half. Totals of an epoch are those that the archive's makers publish.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SLOTS_PER_EPOCH = 432_000
PUBLIC_ARCHIVE = "https://files.old-faithful.net"
PROGRAM = "pAMMBay6oceH9fJKBRHGP5D4bD4sWpmSwMn52FMfXEA"
"""pump_amm: in nearly every recent block."""

RECENT_EPOCH, EARLY_EPOCH = 930, 0
PUBLISHED_TOTALS: Mapping[int, Mapping[str, int]] = {930: {"blocks": 430_867, "transactions": 557_487_942}}
SIDECAR = Path(__file__).resolve().parent.parent / "sidecar" / "target" / "release" / "uho-sidecar"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what, and why it is not as it must be (None: it is)."""

    what: str
    fault: str | None


def scan(archive: str, first_slot: int, last_slot: int, *options: str, sidecar: Path = SIDECAR) -> dict[str, Any]:
    """Return what `uho-sidecar scan` says of the slots (both inclusive); its certificate holds.

    Raises:
        RuntimeError: it did not read them all, with its own last words.
    """
    command = [str(sidecar), "scan", "--json", "--archive", archive, *options]
    command += ["--from-slot", str(first_slot), "--to-slot", str(last_slot)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"slots {first_slot} to {last_slot}: the scan failed, and says why above")
    return json.loads(done.stdout)


def check_blocks(archive: str, first_slot: int, blocks: int, *, sidecar: Path = SIDECAR) -> list[Finding]:
    """Read so many blocks from `first_slot` on, and check what a certificate does not say by itself."""
    slots = blocks
    while True:
        found = scan(archive, first_slot, first_slot + slots - 1, "--program", PROGRAM, sidecar=sidecar)["certificate"]
        if found["blocks"] >= blocks or slots >= 20 * blocks:
            break
        slots *= 2
    what = f"{found['blocks']} blocks from slot {first_slot}, {found['transactions']:,} transactions"
    return [
        Finding(f"{what}: as many as asked for", None if found["blocks"] >= blocks else "there are fewer"),
        Finding(f"{what}: every hash compared", None if found["verify"] == "full" else f"verify {found['verify']}"),
        Finding(
            f"{what}: the block behind them names the last one",
            None if found["tail"] == "proven" else f"tail {found['tail']}",
        ),
        Finding(f"{what}: not empty", None if found["transactions"] > 0 else "no transaction at all"),
    ]


def check_totals(
    archive: str, epoch: int, published: Mapping[str, int], *options: str, sidecar: Path = SIDECAR
) -> list[Finding]:
    """Read an epoch whole, and compare its totals with the published ones."""
    first_slot = epoch * SLOTS_PER_EPOCH
    found = scan(archive, first_slot, first_slot + SLOTS_PER_EPOCH - 1, *options, sidecar=sidecar)["certificate"]
    return [
        Finding(f"epoch {epoch}: {total:,} {name}", None if found[name] == total else f"{found[name]:,} were read")
        for name, total in published.items()
    ]


def main(arguments: Sequence[str]) -> int:
    """Check, print a line each, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--archive", default=PUBLIC_ARCHIVE)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--recent-epoch", type=int, default=RECENT_EPOCH)
    parser.add_argument("--early-epoch", type=int, default=EARLY_EPOCH)
    parser.add_argument("--whole-epoch", type=int, choices=sorted(PUBLISHED_TOTALS), help="for the patient: ~700 GB")
    parser.add_argument("--sidecar", type=Path, default=SIDECAR)
    options = parser.parse_args(arguments)
    recent, early = (epoch * SLOTS_PER_EPOCH for epoch in (options.recent_epoch, options.early_epoch))
    findings: list[Finding] = []
    try:
        # In the middle of the epoch: its first blocks carry the rewards of everybody.
        findings += check_blocks(
            options.archive, recent + SLOTS_PER_EPOCH // 2, options.blocks, sidecar=options.sidecar
        )
        findings += check_blocks(options.archive, early, options.blocks, sidecar=options.sidecar)
        if options.whole_epoch is not None:
            totals = PUBLISHED_TOTALS[options.whole_epoch]
            findings += check_totals(
                options.archive, options.whole_epoch, totals, "--verify", "matched", sidecar=options.sidecar
            )
    except RuntimeError as error:
        findings.append(Finding("reading", str(error)))
    for finding in findings:
        sys.stdout.write(f"{'ok    ' if finding.fault is None else 'FAILED'} {finding.what}")
        sys.stdout.write("\n" if finding.fault is None else f": {finding.fault}\n")
    return 0 if all(finding.fault is None for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
