"""`make verify-mainnet` and `uho-sidecar scan`, on a simulated archive behind HTTP: what they accept, and what not."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import verify_mainnet
from services import built, held_archive, simulate

EPOCH = 2
"""Of the simulator's archive, whose slots lie around the end of epoch 2."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("sim"))


@pytest.fixture(scope="module")
def total(folder):
    return json.loads((folder / "truth" / "summary.json").read_text())


@pytest.fixture
def sidecar():
    return Path(built("uho-sidecar", "UHO_SIDECAR_BINARY"))


def faults(findings):
    return [finding.fault for finding in findings if finding.fault is not None]


def test_blocks_of_a_good_archive_pass_and_of_a_damaged_one_fail(folder, total, sidecar, tmp_path, capsys):
    first = total["first_slot"]
    with held_archive(folder) as archive:
        findings = verify_mainnet.check_blocks(archive.url, first, 10, sidecar=sidecar)
        assert findings
        assert faults(findings) == []
        # More than there are: the last slots have no ten blocks behind them.
        assert "there are fewer" in faults(verify_mainnet.check_blocks(archive.url, first, 9_000, sidecar=sidecar))
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    car = damaged / str(EPOCH) / f"epoch-{EPOCH}.car"
    content = bytearray(car.read_bytes())
    content[len(content) // 100] ^= 1
    car.write_bytes(content)
    with held_archive(damaged) as archive, pytest.raises(RuntimeError, match="the scan failed"):
        verify_mainnet.check_blocks(archive.url, first, 40, sidecar=sidecar)


def test_totals_of_an_epoch_are_compared(folder, total, sidecar):
    chunks = [chunk for start, chunk in total["chunks"].items() if int(start) >= (EPOCH + 1) * 432_000]
    with held_archive(folder) as archive:
        found = verify_mainnet.scan(
            archive.url, (EPOCH + 1) * 432_000, (EPOCH + 2) * 432_000 - 1, "--verify", "matched", sidecar=sidecar
        )["certificate"]
        published = {"blocks": found["blocks"], "transactions": found["transactions"]}
        # The truth speaks of whole chunks within the range; a few blocks lie behind it.
        assert found["blocks"] >= sum(chunk["blocks"] for chunk in chunks[1:]) > 0
        assert faults(verify_mainnet.check_totals(archive.url, EPOCH + 1, published, sidecar=sidecar)) == []
        published["transactions"] += 1
        (fault,) = faults(verify_mainnet.check_totals(archive.url, EPOCH + 1, published, sidecar=sidecar))
        assert fault == f"{found['transactions']:,} were read"


def test_an_archive_without_the_epochs_fails_with_a_line(folder, sidecar, capfd):
    with held_archive(folder) as archive:
        code = verify_mainnet.main(["--archive", archive.url, "--sidecar", str(sidecar), "--recent-epoch", "7"])
    assert code == 1
    said = capfd.readouterr()
    assert "FAILED reading: slots 3240000 to 3240009: the scan failed, and says why above" in said.out
    assert "epoch_not_found" in said.err


def test_a_scan_tells_people_what_the_truth_says(folder, total, sidecar):
    program = re.search(r"program_id: (\w+)", (folder / "programs" / "vault" / "program.yaml").read_text())[1]
    slots = ["--from-slot", str(total["first_slot"]), "--to-slot", str(total["last_slot"])]
    with held_archive(folder) as archive:
        command = [sidecar, "scan", "--archive", archive.url, "--program", program, *slots]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    # No terminal, so no bar: nothing but the log, which is empty.
    assert done.stderr == ""
    counts = dict(re.findall(r"^ *([a-z ]+?) +([\d,]+)$", done.stdout.split(program)[0], re.MULTILINE))
    truth = total["total"]
    for name, expected in (
        ("blocks", truth["blocks"]),
        ("transactions", truth["transactions"]),
        ("votes among them", truth["votes"]),
        ("records", truth["programs"]["vault"]["records"]),
    ):
        assert int(counts[name].replace(",", "")) == expected, name
    assert "complete: the chain of parents has no hole" in done.stdout
    assert "the block after the range names our last one" in done.stdout


def test_help_says_how_to_begin(sidecar):
    def help_of(*command):
        return subprocess.run([sidecar, *command, "--help"], capture_output=True, text=True, check=True).stdout

    assert "Examples:" in help_of()
    serve = help_of("serve")
    for said in ("--max-jobs", "UHO_SIDECAR_MEMORY_LIMIT_MEBIBYTES", "POST /estimate", "--secret-file"):
        assert said in serve
    assert "--from-slot" in help_of("scan")
