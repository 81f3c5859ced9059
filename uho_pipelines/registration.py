"""Which folders become programs, and adding one: `uho programs`, `uho register`.

What belongs here: the checks that a folder passes before Dagster shows its program, and what adding it does: the folder
in its place, the owner's role and the program's schema in the warehouse, and a reload of what runs. What a folder must
hold is `registry.py`'s business.
"""

import filecmp
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.table import Table

from uho_pipelines.decoding import decoder_for
from uho_pipelines.errors import UhoError
from uho_pipelines.graphql import DagsterRefusedError, reload_location
from uho_pipelines.materialization import warehouse_url
from uho_pipelines.registry import (
    PROGRAM_FILE,
    Program,
    ProgramFault,
    ProgramRefusedError,
    load_registry,
    read_program,
    refuse_conflicts,
)
from uho_pipelines.runtime.stack import running_warehouse
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import connect, ensure_tables
from uho_pipelines.warehouse.indexes import asked_indexes
from uho_pipelines.warehouse.ledger import fix_chunk_slots, register_program


class RegisteredOtherwiseError(UhoError):
    """A folder of this name is registered, and holds something else."""

    def __init__(self, folder: Path, differing: Sequence[str]) -> None:
        self.folder = folder
        super().__init__(
            f"{folder} is there already and differs in {', '.join(differing)}. A registered program is changed in its "
            "place: edit it there, then `uho programs` and reload; or give the other program a folder of another name"
        )


def usable_programs(programs: Iterable[Program]) -> tuple[list[Program], list[ProgramFault]]:
    """Return the programs whose IDLs make a decoder that has what they ask to be indexed, and why the others do not."""
    usable: list[Program] = []
    faults: list[ProgramFault] = []
    for program in programs:
        try:
            asked_indexes(program, decoder_for(program).tables())
        except ProgramRefusedError as error:
            faults.extend(error.faults)
        else:
            usable.append(program)
    return usable, faults


def run_programs(settings: Settings, console: Console, *, as_json: bool) -> bool:
    """List the programs and what is wrong with the folders that are refused; return whether none is."""
    registry = load_registry(settings)
    usable, refused = usable_programs(registry.programs)
    faults = [*registry.faults, *refused]
    if as_json:
        shown = [{"file": fault.file, "field": fault.field, "fault": fault.fault} for fault in faults]
        console.print_json(data={"programs": [_as_json(program) for program in usable], "refused": shown})
        return not faults
    table = Table(title=f"programs in {settings.programs_dir}", title_justify="left")
    for heading in ("program", "program id", "slots", "events", "IDL versions", "schema", "read by role"):
        table.add_column(heading, overflow="fold")
    for program in usable:
        slots = f"{program.first_slot} to {'the tip' if program.last_slot is None else program.last_slot}"
        events = str(len(decoder_for(program).tables()))
        versions = ", ".join(f"{version.label} from {version.from_slot}" for version in program.idls)
        follows = f"{slots}{', followed' if program.follow else ''}"
        table.add_row(program.key, program.program_id, follows, events, versions, program.schema_name, program.owner)
    console.print(table, markup=False)
    for fault in faults:
        console.print(f"refused: {fault}", markup=False, highlight=False, soft_wrap=True)
    return not faults


def run_register(settings: Settings, folder: Path, console: Console) -> None:
    """Add the program in `folder`, named as the folder is: copied into the programs folder unless it is there.

    Raises:
        ProgramRefusedError: with every fault; nothing was changed.
        RegisteredOtherwiseError: another folder of the name is there.
        OwnerRoleError, ChunkSlotsFixedError, ProgramChangedError, and what starting Postgres can raise.
    """
    folder = folder.absolute()
    place = settings.programs_dir / folder.name
    program = read_program(folder, settings)
    refuse_conflicts(program, [other for other in load_registry(settings).programs if other.name != program.name])
    _, faults = usable_programs([program])
    if faults:
        raise ProgramRefusedError(*faults)
    files = [PROGRAM_FILE, *(os.path.normpath(version.file.relative_to(folder)) for version in program.idls)]
    if place.exists() and not place.samefile(folder):
        _, differing, missing = filecmp.cmpfiles(folder, place, files, shallow=False)
        if differing or missing:
            raise RegisteredOtherwiseError(place, [*differing, *missing])
    with (
        running_warehouse(settings) as running,
        connect(warehouse_url(running), application_name="uho register") as connection,
    ):
        fix_chunk_slots(connection, program.network, running.network(program.network).chunk_slots)
        register_program(connection, program)
        ensure_tables(connection, program, decoder_for(program).tables())
        if not place.exists():
            _copy(folder, place, files)
        console.print(
            f"{program.key} is registered in {place}. Its tables are in schema {program.schema_name}, which role "
            f"{program.owner} reads: GRANT {program.owner} TO a person's role",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    try:
        reload_location(f"http://127.0.0.1:{settings.webserver_port}")
    except (DagsterRefusedError, requests.RequestException, ValueError):
        console.print("Dagster does not run here, or did not reload: the program appears with `uho up`, or Reload")
    else:
        console.print("Dagster reloads: the program appears in the UI within seconds")


def _copy(folder: Path, place: Path, files: Sequence[str]) -> None:
    """Copy the files of a program folder, so that the folder appears whole or not at all."""
    aside = place.with_name(f".{place.name}")
    shutil.rmtree(aside, ignore_errors=True)
    for name in files:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, aside / name)
    aside.rename(place)


def _as_json(program: Program) -> dict[str, Any]:
    return {
        "program": program.key,
        "programId": program.program_id,
        "firstSlot": program.first_slot,
        "lastSlot": program.last_slot,
        "follow": program.follow,
        "scanGroup": program.scan_group,
        "idlVersions": [{"fromSlot": version.from_slot, "file": version.label} for version in program.idls],
        "schema": program.schema_name,
        "role": program.owner,
    }
