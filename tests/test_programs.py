"""The demo's programs, registered in the package, are the simulator's."""

import subprocess
from pathlib import Path

import pytest

from uho_pipelines.registry import load_registry
from uho_pipelines.runtime.stack import BuiltProgramMissingError, built_program
from uho_pipelines.settings import Settings

PROGRAMS = Path(__file__).parent.parent / "uho_pipelines" / "programs"


def test_the_registered_demo_programs_are_those_the_simulator_writes(tmp_path: Path) -> None:
    try:
        simulator = built_program("archive-sim")
    except BuiltProgramMissingError as missing:
        pytest.skip(str(missing))
    subprocess.run([simulator, "write", "--out", tmp_path], check=True, stdout=subprocess.DEVNULL)
    written = {path.relative_to(tmp_path / "programs"): path for path in (tmp_path / "programs").rglob("*.*")}
    assert written
    for name, path in written.items():
        assert (PROGRAMS / name).read_bytes() == path.read_bytes(), name


def test_every_registered_program_is_accepted() -> None:
    registry = load_registry(Settings(programs_dir=PROGRAMS))
    assert not registry.faults
    assert {program.name for program in registry.programs} >= {"orderbook", "vault"}
