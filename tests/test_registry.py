"""Program folders are read strictly: a bad one is refused with file, field and fault, and takes no other down."""

import os

import pytest
from streams import make_settings, program_id

from uho_pipelines.registry import PROGRAM_FILE_BYTES, ProgramsFolderError, UnknownProgramError, load_registry

ALPHA = str(program_id("alpha"))
BETA = str(program_id("beta"))

GOOD = f"""\
program_id: {ALPHA}
network: sim
owner: demo
first_slot: 1_000
idls:
  - {{from_slot: 0, file: idl/alpha.json}}
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "programs"


@pytest.fixture
def registry(tmp_path, folder):
    def load():
        return load_registry(make_settings(tmp_path, programs_dir=folder))

    return load


def add(folder, name, text=GOOD, idl=b"{}"):
    (folder / name / "idl").mkdir(parents=True)
    (folder / name / "program.yaml").write_text(text, encoding="utf-8")
    if idl is not None:
        (folder / name / "idl" / "alpha.json").write_bytes(idl)


def test_a_program_is_read_whole(folder, registry):
    text = f"""\
program_id: {ALPHA}
network: sim
owner: demo
first_slot: 5
last_slot: 99
scan_group: pair
include_failed: true
ignore: ["e445a52e51cb9a1d"]
idls:
  - {{from_slot: 50, file: idl/alpha.json}}
  - {{from_slot: 0, file: idl/old.json}}
"""
    add(folder, "alpha", text, b"new")
    (folder / "alpha" / "idl" / "old.json").write_bytes(b"old")
    (program,) = registry().programs
    assert (program.key, program.schema_name) == ("sim/demo/alpha", "demo_sim_alpha")
    assert (program.first_slot, program.last_slot, program.scan_group) == (5, 99, "pair")
    assert program.include_failed
    assert program.ignore == (bytes.fromhex("e445a52e51cb9a1d"),)
    assert [(version.from_slot, version.label, version.json) for version in program.idls] == [
        (0, "old.json", b"old"),
        (50, "alpha.json", b"new"),
    ]
    assert program.id_bytes == bytes(program_id("alpha"))


def test_what_may_be_left_out_has_a_default(folder, registry):
    add(folder, "alpha")
    (program,) = registry().programs
    assert (program.first_slot, program.last_slot, program.scan_group) == (1_000, None, "alpha")
    assert not program.include_failed
    assert (program.bytea, program.parquet, program.indexes) == (False, False, {})


def test_indexes_bytea_and_parquet_are_asked_for_per_program(folder, registry):
    add(folder, "alpha", GOOD + 'bytea: true\nparquet: true\nindexes: {"*": [signature], Trade: [mint, [a, b]]}\n')
    (program,) = registry().programs
    assert (program.bytea, program.parquet) == (True, True)
    assert program.indexes == {"*": (("signature",),), "Trade": (("mint",), ("a", "b"))}
    add(folder, "beta", GOOD.replace(ALPHA, BETA))
    assert len({program.policy_hash for program in registry().programs}) == 2


def test_instructions_are_records_where_asked_for(folder, registry):
    add(folder, "alpha", GOOD + "records: [events, instructions]\n")
    add(folder, "beta", GOOD.replace(ALPHA, BETA) + "records: [events]\n")
    programs = registry().programs
    assert [program.instructions for program in programs] == [True, False]
    assert len({program.policy_hash for program in programs}) == 2


def test_the_hash_follows_versions_and_nothing_else(folder, registry):
    add(folder, "alpha")
    before = registry().programs[0]
    (folder / "alpha" / "program.yaml").write_text(GOOD + "include_failed: true\n")
    changed_policy = registry().programs[0]
    assert (changed_policy.idl_hash, changed_policy.policy_hash != before.policy_hash) == (before.idl_hash, True)
    (folder / "alpha" / "idl" / "alpha.json").write_bytes(b"{ }")
    assert registry().programs[0].idl_hash != before.idl_hash


def test_a_bad_program_takes_no_other_down(folder, registry):
    add(folder, "alpha")
    add(folder, "beta", "nonsense")
    result = registry()
    assert [program.name for program in result.programs] == ["alpha"]
    assert [str(fault) for fault in result.faults] == ["beta/program.yaml: must hold the program's fields"]


def changed(line: str, new: str) -> str:
    assert line in GOOD
    return GOOD.replace(line, new)


@pytest.mark.parametrize(
    ("text", "field", "fault"),
    [
        (GOOD + "extra: 1\n", "extra", "is no field"),
        (GOOD.replace("owner: demo\n", ""), "owner", "is missing"),
        (GOOD + "records: [instructions]\n", "records", "must be [events] or [events, instructions]"),
        (GOOD + "records: [events, events]\n", "records", "must be [events] or [events, instructions]"),
        (GOOD + "records: [logs]\n", "records.0", "'events' or 'instructions'"),
        (changed("owner: demo", "owner: de_mo"), "owner", "no underscore"),
        (changed("owner: demo", "owner: Demo"), "owner", "lower case"),
        (changed("owner: demo", "owner: 'de\"; drop'"), "owner", "letter"),
        (changed("owner: demo", "owner: pg"), "owner", "reserved"),
        (changed("owner: demo", "owner: [demo]"), "owner", "must be text"),
        (changed("network: sim", "network: si_m"), "network", "no underscore"),
        (changed("network: sim", "network: moon"), "network", "not one of the networks"),
        (changed(ALPHA, "abc"), "program_id", "at least 32"),
        (changed(ALPHA, "12345678901234567890"), "program_id", "must be text"),
        (changed(ALPHA, "O" * 40), "program_id", "no base58"),
        (changed("1_000", "0345600000"), "first_slot", "decimal integer"),
        (changed("1_000", "-1"), "first_slot", "decimal integer"),
        (changed("1_000", "1.5"), "first_slot", "decimal integer"),
        (changed("1_000", "true"), "first_slot", "decimal integer"),
        (changed("1_000", "99999999999"), "first_slot", "less than"),
        (GOOD + "last_slot: 999\n", "last_slot", "before first_slot"),
        (GOOD + "scan_group: A B\n", "scan_group", "letter"),
        (GOOD + "include_failed: no\n", "include_failed", "boolean"),
        (GOOD + "ignore: [12345678]\n", "ignore.0", "quotes"),
        (GOOD + "ignore: [xyz]\n", "ignore.0", "hexadecimal"),
        (GOOD + "ignore: ['']\n", "ignore.0", "hexadecimal"),
        (changed("from_slot: 0", "from_slot: x"), "idls.0.from_slot", "decimal integer"),
        (changed("  - {from_slot: 0, file: idl/alpha.json}", "  []"), "idls", "at least 1"),
        (GOOD + "  - {from_slot: 0, file: idl/alpha.json}\n", "idls", "same from_slot"),
        (changed("idl/alpha.json", "../../secret.json"), "idls.0.file", "leads out"),
        (changed("idl/alpha.json", "/etc/passwd"), "idls.0.file", "no path inside"),
        (changed("idl/alpha.json", '"a\\0b"'), "idls.0.file", "no path inside"),
        (changed("idl/alpha.json", "idl/none.json"), "idls.0.file", "not there"),
        (changed("idl/alpha.json", "idl"), "idls.0.file", "no regular file"),
        (GOOD + "owner: demo\n", "", "there twice"),
        ("a: &x [1]\nb: *x\n", "", "aliases"),
        ("!!python/object/apply:os.system ['true']\n", "", "no YAML that is read here"),
        ("[" * 5000, "", "no YAML that is read here"),
        ("a: [\n", "", "no YAML that is read here"),
        ("? [1]\n: 2\n", "", "no text"),
        ("# " + "x" * PROGRAM_FILE_BYTES, "", "more than"),
    ],
)
def test_a_fault_names_file_field_and_what_is_wrong(folder, registry, text, field, fault):
    add(folder, "alpha", text)
    result = registry()
    assert result.programs == ()
    assert (result.faults[0].file, result.faults[0].field) == ("alpha/program.yaml", field)
    assert fault in result.faults[0].fault, str(result.faults[0])


def test_values_are_not_repeated_in_faults(folder, registry):
    add(folder, "alpha", changed("1_000", "hunter2"))
    assert "hunter2" not in str(registry().faults)


@pytest.mark.parametrize("name", ["Alpha", "1alpha", "al-pha", "a.b"])
def test_a_folder_must_be_a_name(folder, registry, name):
    add(folder, name)
    assert "letter, then letters" in registry().faults[0].fault


def test_a_schema_name_that_would_be_cut_is_refused(folder, registry):
    add(folder, "a" * 60)
    assert "more than 55 bytes" in registry().faults[0].fault


def test_files_that_are_no_text_or_no_program_are_refused(folder, registry):
    add(folder, "alpha")
    (folder / "alpha" / "program.yaml").write_bytes(b"\xff\xfe\x00")
    add(folder, "beta")
    (folder / "beta" / "program.yaml").unlink()
    assert [fault.fault for fault in registry().faults] == ["is not UTF-8", "'program.yaml' is not there"]


def test_links_may_not_lead_out(folder, registry, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    add(folder, "alpha", idl=None)
    (folder / "alpha" / "idl" / "alpha.json").symlink_to(tmp_path / "secret.json")
    add(folder, "beta")
    (folder / "beta" / "program.yaml").unlink()
    (folder / "beta" / "program.yaml").symlink_to(folder / "alpha" / "program.yaml")
    assert ["leads out" in fault.fault for fault in registry().faults] == [True, True]


def test_a_link_inside_the_folder_is_read(folder, registry):
    add(folder, "alpha", idl=None)
    (folder / "alpha" / "real.json").write_text("{}")
    (folder / "alpha" / "idl" / "alpha.json").symlink_to("../real.json")
    assert len(registry().programs) == 1


def test_a_pipe_does_not_stop_the_loading(folder, registry):
    add(folder, "alpha", idl=None)
    os.mkfifo(folder / "alpha" / "idl" / "alpha.json")
    assert "no regular file" in registry().faults[0].fault


def test_a_large_idl_is_refused(folder, registry, monkeypatch):
    monkeypatch.setattr("uho_pipelines.registry.IDL_BYTES", 10)
    add(folder, "alpha", idl=b"x" * 11)
    assert "more than 10 bytes" in registry().faults[0].fault


def test_an_owner_has_a_program_id_once(folder, registry):
    add(folder, "alpha")
    add(folder, "beta")
    result = registry()
    assert [program.name for program in result.programs] == ["alpha"]
    assert "in alpha/program.yaml" in result.faults[0].fault


def test_two_owners_may_index_one_program(folder, registry):
    add(folder, "alpha")
    add(folder, "beta", changed("owner: demo", "owner: other"))
    assert len(registry().programs) == 2


@pytest.mark.parametrize("change", [("owner: demo", "owner: other"), ("network: sim", "network: mainnet")])
def test_a_scan_group_has_one_owner_and_network(folder, registry, change):
    add(folder, "alpha", GOOD + "scan_group: pair\n")
    add(folder, "beta", GOOD.replace(*change).replace(ALPHA, BETA) + "scan_group: pair\n")
    result = registry()
    assert [program.name for program in result.programs] == ["alpha"]
    assert result.faults[0].field == "scan_group"


def test_programs_are_found_by_name_and_key_and_a_refused_one_says_why(folder, registry):
    add(folder, "alpha")
    add(folder, "beta", "nonsense")
    result = registry()
    assert result.program("alpha") == result.program("sim/demo/alpha")
    with pytest.raises(UnknownProgramError, match="must hold the program's fields"):
        result.program("beta")
    with pytest.raises(UnknownProgramError, match="registered: sim/demo/alpha"):
        result.program("gamma")


def test_a_missing_folder_of_programs_says_what_to_set(tmp_path):
    with pytest.raises(ProgramsFolderError, match="UHO_PROGRAMS_DIR"):
        load_registry(make_settings(tmp_path, programs_dir=tmp_path / "nowhere"))
