"""`uho idl fetch`: a program's IDL from the chain, saved as a program folder.

What belongs here: the folder. A folder that is there is never changed but for a new IDL file beside the others: its
program.yaml is a person's.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from solders.pubkey import Pubkey

from uho_pipelines.errors import UhoError
from uho_pipelines.idl.chain import read_on_chain_idl
from uho_pipelines.idl.payload import make_decoder
from uho_pipelines.registry import PROGRAM_FILE, PROGRAM_NAME, Program, load_registry, read_program
from uho_pipelines.settings import Settings


class FetchRefusedError(UhoError):
    """An IDL that cannot be saved as was asked."""


@dataclass(frozen=True)
class Fetched:
    """What was saved: the IDL file, and sentences for the person who asked."""

    file: Path
    notes: tuple[str, ...]


def fetch_idl(settings: Settings, program_id: str, network: str, owner: str, name: str | None = None) -> Fetched:
    """Save a program's IDL of now in `settings.programs_dir`; `name` is a new folder's, else the IDL says it.

    Raises:
        UnknownNetworkError, RpcMissingError, RpcError, IdlAccountError
        IdlUnreadableError: the IDL makes no decoder.
        FetchRefusedError: the id is none, or the folder cannot be made.
        ProgramRefusedError: the new folder would be refused.
    """
    try:
        key = Pubkey.from_string(program_id)
    except ValueError:
        raise FetchRefusedError(f"{program_id[:64]!r} is no program id: base58 of 32 bytes") from None
    found = read_on_chain_idl(settings, network, key)
    slot = found.changed_slot or 0
    decoder = make_decoder([(slot, "idl", found.json)], bytes(key))
    notes = [f"{len(decoder.tables())} events, from the account {found.address}"]
    if found.changed_slot is None:
        notes.append(
            "The RPC endpoint does not tell when the account last changed: assumed is slot 0. Correct from_slot if "
            "you know better"
        )
    else:
        notes.append(
            f"In force from slot {slot}, when the account last changed. Older records are decoded by it where it fits, "
            "and counted as fall-backs; add the versions before it if you have them"
        )
    registered = [
        program
        for program in load_registry(settings).programs
        if (program.network, program.program_id) == (network, program_id)
    ]
    if registered:
        return _beside(registered[0], slot, found.json, notes)
    name = name or _name(found.json)
    if PROGRAM_NAME.fullmatch(name) is None:
        raise FetchRefusedError(f"--name {name!r}: a letter, then letters, digits and underscores, lower case")
    folder = settings.programs_dir / name
    if folder.exists():
        raise FetchRefusedError(f"{folder} is there already, and not this program's: choose another --name")
    return _new_folder(settings, folder, program_id, network, owner, slot, found.json, notes)


def _beside(program: Program, slot: int, content: bytes, notes: list[str]) -> Fetched:
    """Add a version's file to a folder that is there."""
    for version in program.idls:
        if version.json == content:
            return Fetched(version.file, (*notes, f"{program.key} has it already, from slot {version.from_slot}"))
    file = program.folder / "idl" / f"{program.name}-{slot}.json"
    if file.exists():
        raise FetchRefusedError(f"{file} is there already, with another content: look at both")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    entry = f"{{from_slot: {slot}, file: idl/{file.name}}}"
    return Fetched(file, (*notes, f"Add to idls in {program.folder / PROGRAM_FILE}:\n  - {entry}"))


def _new_folder(
    settings: Settings,
    folder: Path,
    program_id: str,
    network: str,
    owner: str,
    slot: int,
    content: bytes,
    notes: list[str],
) -> Fetched:
    file = folder / "idl" / f"{folder.name}-{slot}.json"
    document = {
        "program_id": program_id,
        "network": network,
        "owner": owner,
        "first_slot": slot,
        "idls": [{"from_slot": slot, "file": f"idl/{file.name}"}],
    }
    aside = folder.with_name(f".{folder.name}")
    (aside / "idl").mkdir(parents=True, exist_ok=True)
    try:
        (aside / "idl" / file.name).write_bytes(content)
        (aside / PROGRAM_FILE).write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        aside.rename(folder)
        read_program(folder, settings)
    except BaseException:
        for left in (aside, folder):
            for path in (left / "idl" / file.name, left / PROGRAM_FILE):
                path.unlink(missing_ok=True)
            for path in (left / "idl", left):
                if path.is_dir():
                    path.rmdir()
        raise
    first = f"first_slot is {slot} too: lower it to backfill what was before"
    return Fetched(file, (*notes, f"New program folder {folder}. {first}"))


def _name(content: bytes) -> str:
    """Return a folder's name from what the IDL calls itself."""
    document = json.loads(content.decode("utf-8-sig"))
    metadata = document.get("metadata")
    said = document.get("name") or (metadata.get("name") if isinstance(metadata, dict) else None)
    name = re.sub(r"[^a-z0-9_]", "_", said.lower()) if isinstance(said, str) else ""
    if PROGRAM_NAME.fullmatch(name) is None or len(name) > 40:
        raise FetchRefusedError("the IDL does not say what the program is called: choose a --name")
    return name
