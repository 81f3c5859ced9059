"""What is indexed: reads the program folders, `<name>/program.yaml` and the IDL files it names.

What belongs here: reading and refusing. A program folder may come from a stranger: whatever is in it can make its own
program refused, with file, field and fault, and nothing else. What an IDL means is `decoding.py`'s business.
"""

import hashlib
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from solders.pubkey import Pubkey

from uho_pipelines.chunks import SLOT_LIMIT
from uho_pipelines.errors import UhoError
from uho_pipelines.settings import NAME, Settings

PROGRAM_FILE = "program.yaml"
PROGRAM_FILE_BYTES = 64 * 1024
"""A program.yaml may have so many bytes."""

IDL_BYTES = 16 * 1024 * 1024
"""An IDL file may have so many bytes."""

IDL_VERSIONS = 1_000
"""A program may have so many IDL versions."""

SCHEMA_NAME_BYTES = 55
"""The Postgres schema `<owner>_<network>_<program>` may have so many bytes; Postgres cuts names at 63."""

PROGRAM_NAME = re.compile(r"[a-z][a-z0-9_]*")
RESERVED_OWNERS = {"pg", "public", "none", "uho"}
"""`pg_…` is refused by Postgres, `public` and `none` are no role names, `uho` is the ledger."""


@dataclass(frozen=True)
class ProgramFault:
    """Why a program folder is refused: `file` in the programs folder, `field` ("": the whole file), `fault`."""

    file: str
    field: str
    fault: str

    def __str__(self) -> str:
        return f"{self.file}: {self.field + ': ' if self.field else ''}{self.fault}"


class ProgramRefusedError(UhoError):
    """A program that has faults."""

    def __init__(self, *faults: ProgramFault) -> None:
        self.faults = faults
        super().__init__("; ".join(str(fault) for fault in faults))


class ProgramsFolderError(UhoError):
    """The folder of program folders cannot be read."""

    def __init__(self, folder: Path, reason: str) -> None:
        self.folder = folder
        self.reason = reason
        super().__init__(
            f"the programs folder {folder} cannot be read ({reason}): "
            "set UHO_PROGRAMS_DIR to a folder of program folders"
        )


@dataclass(frozen=True)
class IdlVersion:
    """An IDL that is in force from `from_slot` on."""

    from_slot: int
    file: Path
    json: bytes

    @property
    def label(self) -> str:
        """What the version is called in counts, quarantine and messages: its file's name."""
        return self.file.name


@dataclass(frozen=True)
class Program:
    """A registered program. Its identity everywhere is network/owner/name."""

    network: str
    owner: str
    name: str
    program_id: str
    """Base58."""
    first_slot: int
    last_slot: int | None
    """Inclusive; None: up to the archive's tip."""
    scan_group: str
    include_failed: bool
    follow: bool
    """Whether chunks that are missing up to the archive's tip are requested without a person's doing."""
    ignore: tuple[bytes, ...]
    """Discriminators that are not the program's own events."""
    idls: tuple[IdlVersion, ...]
    """Ascending by `from_slot`; at least one."""
    folder: Path
    bytea: bool = False
    """Whether columns of addresses and signatures are bytea instead of base58 text."""
    parquet: bool = False
    """Whether decoded events are written as Parquet too."""
    instructions: bool = False
    """Whether the program's instructions are records too, with tables of their own."""
    indexes: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict[str, tuple[tuple[str, ...], ...]])
    """Indexes beside the primary key by event name (`*`: every event), each a list of columns or fields."""

    @property
    def key(self) -> str:
        """`network/owner/name`."""
        return f"{self.network}/{self.owner}/{self.name}"

    @property
    def schema_name(self) -> str:
        """The Postgres schema with the program's event tables."""
        return f"{self.owner}_{self.network}_{self.name}"

    @cached_property
    def id_bytes(self) -> bytes:
        """The program id's 32 bytes."""
        return bytes(Pubkey.from_string(self.program_id))

    @cached_property
    def idl_hash(self) -> str:
        """SHA-256 (hex) of the IDL versions: each one's first slot (8 bytes, little endian) and its file's SHA-256."""
        digest = hashlib.sha256()
        for version in self.idls:
            digest.update(version.from_slot.to_bytes(8, "little"))
            digest.update(hashlib.sha256(version.json).digest())
        return digest.hexdigest()

    @cached_property
    def policy_hash(self) -> str:
        """The first 8 hex characters of SHA-256 of what decides, beside the IDLs, which records become rows."""
        policy = f"{self.include_failed}:{','.join(sorted(prefix.hex() for prefix in self.ignore))}"
        for name in ("bytea", "parquet", "instructions"):
            policy += f":{name}" if getattr(self, name) else ""
        return hashlib.sha256(policy.encode("ascii")).hexdigest()[:8]


@dataclass(frozen=True)
class Registry:
    """The programs that can be indexed, in the order of their folders' names, and what was refused."""

    programs: tuple[Program, ...]
    faults: tuple[ProgramFault, ...]

    def program(self, name: str) -> Program:
        """Return the program called `name`: a folder's name, or network/owner/name.

        Raises:
            UnknownProgramError: there is none.
        """
        for program in self.programs:
            if name in {program.name, program.key}:
                return program
        raise UnknownProgramError(name, self)


class UnknownProgramError(UhoError):
    """A program that is not registered, or was refused."""

    def __init__(self, name: str, registry: Registry) -> None:
        self.name = name
        faults = [fault for fault in registry.faults if fault.file.split("/", 1)[0] == name.rsplit("/", 1)[-1]]
        if faults:
            reason = f"its folder is refused: {'; '.join(str(fault) for fault in faults)}"
        else:
            reason = f"registered: {', '.join(program.key for program in registry.programs) or 'nothing'}"
        super().__init__(f"there is no program {name!r}; {reason}")


class _IdlEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    from_slot: Annotated[int, Field(ge=0, lt=SLOT_LIMIT)]
    file: Annotated[str, Field(min_length=1, max_length=255)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_Index = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=255)]],
    Field(min_length=1, max_length=8),
    BeforeValidator(_as_list),
]
"""An index: a column, or a list of columns."""


class _ProgramFile(BaseModel):
    """The fields of program.yaml."""

    model_config = ConfigDict(extra="forbid", strict=True)

    program_id: Annotated[str, Field(min_length=32, max_length=44)]
    network: str
    owner: str
    first_slot: Annotated[int, Field(ge=0, lt=SLOT_LIMIT)]
    last_slot: Annotated[int, Field(ge=0, lt=SLOT_LIMIT)] | None = None
    scan_group: str | None = None
    include_failed: bool = False
    follow: bool = False
    records: Annotated[list[Literal["events", "instructions"]], Field(max_length=2)] = Field(
        default_factory=lambda: ["events"]
    )
    ignore: Annotated[list[str], Field(max_length=1_000)] = Field(default_factory=list[str])
    bytea: bool = False
    parquet: bool = False
    indexes: Annotated[dict[str, Annotated[list[_Index], Field(max_length=32)]], Field(max_length=1_000)] = Field(
        default_factory=dict[str, list[_Index]]
    )
    idls: Annotated[list[_IdlEntry], Field(min_length=1, max_length=IDL_VERSIONS)]


class _StrictLoader(yaml.SafeLoader):
    """YAML without its surprises: no aliases, no key twice, and all but true, false, null and decimal integers is text.

    YAML 1.1 reads `0345600000` as octal, `1:30` as 90 and `no` as false; here they are text, and a field refuses them.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases (*name) are not read", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, "a key is no text or there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|false)$"), list("tf"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"(?:0|[1-9][0-9_]{0,24})$"), list("0123456789")
)
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:null|~|)$"), ["n", "~", ""])


def load_registry(settings: Settings) -> Registry:
    """Read every program folder of `settings.programs_dir`; a folder with a fault is refused and the others stand.

    Raises:
        ProgramsFolderError: the folder of folders itself cannot be read.
    """
    try:
        folders = sorted(
            path for path in settings.programs_dir.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))
        )
    except OSError as error:
        raise ProgramsFolderError(settings.programs_dir, error.strerror or str(error)) from None
    programs: list[Program] = []
    faults: list[ProgramFault] = []
    for folder in folders:
        try:
            program = read_program(folder, settings)
            refuse_conflicts(program, programs)
        except ProgramRefusedError as error:
            faults.extend(error.faults)
        else:
            programs.append(program)
    return Registry(tuple(programs), tuple(faults))


def read_program(folder: Path, settings: Settings) -> Program:
    """Read one program folder.

    Raises:
        ProgramRefusedError: with every fault that was found.
    """
    where = f"{folder.name}/{PROGRAM_FILE}"
    if PROGRAM_NAME.fullmatch(folder.name) is None:
        fault = "a program folder's name is a letter, then letters, digits and underscores, lower case"
        raise ProgramRefusedError(ProgramFault(folder.name, "", fault))
    fields = _parse(_read_inside(folder, PROGRAM_FILE, PROGRAM_FILE_BYTES, where, ""), where)
    faults = list(_field_faults(fields, folder.name, settings, where))
    if faults:
        raise ProgramRefusedError(*faults)
    idls = [
        IdlVersion(
            entry.from_slot,
            folder / entry.file,
            _read_inside(folder, entry.file, IDL_BYTES, where, f"idls.{index}.file"),
        )
        for index, entry in enumerate(fields.idls)
    ]
    return Program(
        network=fields.network,
        owner=fields.owner,
        name=folder.name,
        program_id=fields.program_id,
        first_slot=fields.first_slot,
        last_slot=fields.last_slot,
        scan_group=fields.scan_group or folder.name,
        include_failed=fields.include_failed,
        follow=fields.follow,
        ignore=tuple(bytes.fromhex(text) for text in fields.ignore),
        idls=tuple(sorted(idls, key=lambda version: version.from_slot)),
        folder=folder,
        bytea=fields.bytea,
        parquet=fields.parquet,
        instructions="instructions" in fields.records,
        indexes={event: tuple(tuple(index) for index in asked) for event, asked in fields.indexes.items()},
    )


def _read_inside(folder: Path, name: str, limit: int, where: str, field: str) -> bytes:
    """Read the regular file `name` of `folder`, which no link leads out of, of at most `limit` bytes."""

    def refused(fault: str) -> ProgramRefusedError:
        return ProgramRefusedError(ProgramFault(where, field, fault))

    if "\0" in name or Path(name).is_absolute():
        raise refused(f"{name!r} is no path inside the program's folder")
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise refused(f"{name!r} leads out of the program's folder")
        if not path.exists():
            raise refused(f"{name!r} is not there")
        if not path.is_file():
            raise refused(f"{name!r} is no regular file")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, RuntimeError) as error:
        raise refused(f"{name!r} cannot be read ({type(error).__name__})") from None
    if len(content) > limit:
        raise refused(f"{name!r} has more than {limit:,} bytes")
    return content


def _parse(content: bytes, where: str) -> _ProgramFile:
    def refused(fault: str) -> ProgramRefusedError:
        return ProgramRefusedError(ProgramFault(where, "", fault))

    try:
        # A subclass of SafeLoader: only plain values are constructed.
        document = yaml.load(content.decode("utf-8-sig"), Loader=_StrictLoader)  # noqa: S506
    except UnicodeDecodeError:
        raise refused("is not UTF-8") from None
    except yaml.MarkedYAMLError as error:
        place = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise refused(f"is no YAML that is read here{place}: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise refused(f"is no YAML that is read here ({type(error).__name__})") from None
    if not isinstance(document, dict):
        raise refused("must hold the program's fields")
    try:
        return _ProgramFile.model_validate(document)
    except ValidationError as error:
        items = error.errors(include_input=False, include_url=False, include_context=False)
        faults = [ProgramFault(where, ".".join(str(part) for part in item["loc"]), _reason(item)) for item in items]
        raise ProgramRefusedError(*faults) from None


def _reason(item: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    match item["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "is no field of program.yaml"
        case "string_type":
            return "must be text; put it in quotes"
        case "int_type":
            return "must be a decimal integer without leading zeros"
        case _:
            return str(item["msg"])


def _field_faults(fields: _ProgramFile, name: str, settings: Settings, where: str) -> Iterator[ProgramFault]:
    """Yield what is wrong with fields that have the right types."""
    plain = "must be a letter, then letters and digits, lower case, at most 16 (no underscore)"
    if NAME.fullmatch(fields.network) is None:
        yield ProgramFault(where, "network", plain)
    elif fields.network not in settings.networks:
        yield ProgramFault(
            where, "network", f"is not one of the networks that are set: {', '.join(sorted(settings.networks))}"
        )
    if NAME.fullmatch(fields.owner) is None:
        yield ProgramFault(where, "owner", plain)
    elif fields.owner in RESERVED_OWNERS:
        yield ProgramFault(where, "owner", f"{fields.owner!r} is reserved")
    if len(f"{fields.owner}_{fields.network}_{name}") > SCHEMA_NAME_BYTES:
        yield ProgramFault(
            where,
            "",
            f"the Postgres schema <owner>_<network>_<folder name> would have more than {SCHEMA_NAME_BYTES} bytes",
        )
    try:
        Pubkey.from_string(fields.program_id)
    except ValueError:
        yield ProgramFault(where, "program_id", "is no base58 of 32 bytes")
    if fields.last_slot is not None and fields.last_slot < fields.first_slot:
        yield ProgramFault(where, "last_slot", "lies before first_slot")
    if fields.scan_group is not None and (
        PROGRAM_NAME.fullmatch(fields.scan_group) is None or len(fields.scan_group) > SCHEMA_NAME_BYTES
    ):
        yield ProgramFault(where, "scan_group", "must be a letter, then letters, digits and underscores, lower case")
    for index, text in enumerate(fields.ignore):
        if re.fullmatch(r"(?:[0-9a-fA-F]{2}){1,32}", text) is None:
            yield ProgramFault(where, f"ignore.{index}", "must be a discriminator in hexadecimal, 1 to 32 bytes")
    if "events" not in fields.records or len(set(fields.records)) < len(fields.records):
        yield ProgramFault(where, "records", "must be [events] or [events, instructions]")
    slots = [entry.from_slot for entry in fields.idls]
    if len(set(slots)) < len(slots):
        yield ProgramFault(where, "idls", "two versions have the same from_slot")


def refuse_conflicts(program: Program, others: list[Program]) -> None:
    """Refuse a program registered twice, or in another owner's or network's scan group; the first one stands.

    Raises:
        ProgramRefusedError
    """
    where = f"{program.name}/{PROGRAM_FILE}"
    owner = (program.network, program.owner)
    for other in others:
        same_owner = owner == (other.network, other.owner)
        if same_owner and program.program_id == other.program_id:
            fault = f"{program.owner} has this program id on {program.network} already, in {other.name}/{PROGRAM_FILE}"
            raise ProgramRefusedError(ProgramFault(where, "program_id", fault))
        if not same_owner and program.scan_group == other.scan_group:
            fault = (
                f"scan group {program.scan_group!r} is {other.owner}'s on {other.network} "
                f"(in {other.name}/{PROGRAM_FILE}); a scan group has one owner and one network"
            )
            raise ProgramRefusedError(ProgramFault(where, "scan_group", fault))
