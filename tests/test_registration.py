"""Adding programs: what is checked, what appears where, and who may read what."""

import json
import shutil

import psycopg
import pytest
from psycopg import sql
from streams import IDL, make_settings, program_id
from typer.testing import CliRunner

from uho_pipelines import cli
from uho_pipelines.registration import RegisteredOtherwiseError
from uho_pipelines.registry import ProgramRefusedError, load_registry
from uho_pipelines.runtime.stack import settings_environment
from uho_pipelines.warehouse import connect, ensure_tables
from uho_pipelines.warehouse.roles import OwnerRoleError

PROGRAM = """\
program_id: {id}
network: sim
owner: {owner}
first_slot: 0
last_slot: 299
idls:
  - {{from_slot: 0, file: idl/../idl/now.json}}
"""
OWNERS = ("acme", "globex")


@pytest.fixture
def settings(warehouse, tmp_path, monkeypatch):
    (tmp_path / "programs").mkdir()
    settings = make_settings(tmp_path, programs_dir=tmp_path / "programs", postgres_url=warehouse, webserver_port=9)
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)
    yield settings
    with connect(warehouse, application_name="test") as connection:
        for owner in (*OWNERS, "maker"):
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [owner]).fetchone():
                role = sql.Identifier(owner)
                connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
                connection.execute(sql.SQL("DROP ROLE {}").format(role))


def folder_of(tmp_path, name, owner="acme", **changes):
    folder = tmp_path / "new" / name
    (folder / "idl").mkdir(parents=True)
    text = PROGRAM.format(id=changes.get("id", program_id(name)), owner=owner)
    (folder / "program.yaml").write_text(text)
    idl = {**IDL, "address": str(program_id(name)), **changes.get("idl", {})}
    (folder / "idl" / "now.json").write_text(json.dumps(idl))
    (folder / "notes.txt").write_text("not of the program")
    return folder


def uho(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def may_read(warehouse, role, table):
    with connect(warehouse, application_name="test") as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        try:
            connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*table.split("."))))
        except psycopg.errors.InsufficientPrivilege:
            return False
        return True


def test_owners_read_their_own_programs_and_nothing_else(settings, warehouse, tmp_path):
    for name, owner in (("alpha", "acme"), ("beta", "globex")):
        done = uho("register", folder_of(tmp_path, name, owner))
        assert done.exit_code == 0, done.output
        assert f"sim/{owner}/{name} is registered" in done.output
        assert "the program appears with `uho up`, or Reload" in done.output, "nothing listens on port 9"
    readable = {
        (owner, table): may_read(warehouse, owner, table)
        for owner in OWNERS
        for table in ("acme_sim_alpha.happened", "globex_sim_beta.happened", "uho.chunk", "uho.quarantine")
    }
    assert {key for key, may in readable.items() if may} == {
        ("acme", "acme_sim_alpha.happened"),
        ("globex", "globex_sim_beta.happened"),
    }
    with connect(warehouse, application_name="test") as connection:
        query = "SELECT rolcanlogin, rolsuper, rolcreaterole FROM pg_roles WHERE rolname = ANY(%s)"
        assert connection.execute(query, [list(OWNERS)]).fetchall() == [(False, False, False)] * 2
    # A table that comes later, with another IDL version, is readable too.
    with connect(warehouse, application_name="test") as connection:
        connection.execute("CREATE TABLE acme_sim_alpha.later (slot bigint)")
    assert may_read(warehouse, "acme", "acme_sim_alpha.later")


def test_a_registered_folder_is_listed_and_holds_what_belongs_to_the_program_alone(settings, tmp_path):
    folder = folder_of(tmp_path, "alpha")
    assert uho("register", folder).exit_code == 0
    place = settings.programs_dir / "alpha"
    files = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    assert files == ["idl/now.json", "program.yaml"]
    assert uho("register", folder).exit_code == 0, "the same again changes nothing"
    assert uho("register", place).exit_code == 0
    (listed,) = json.loads(uho("programs", "--json").output)["programs"]
    assert (listed["program"], listed["schema"], listed["role"]) == ("sim/acme/alpha", "acme_sim_alpha", "acme")
    (folder / "program.yaml").write_text((folder / "program.yaml").read_text().replace("299", "399"))
    assert isinstance(uho("register", folder).exception, RegisteredOtherwiseError)
    assert load_registry(settings).program("alpha").last_slot == 299


def test_a_folder_with_faults_is_refused_whole_and_the_others_stand(settings, warehouse, tmp_path):
    assert uho("register", folder_of(tmp_path, "alpha")).exit_code == 0
    twin = uho("register", folder_of(tmp_path, "twin", id=program_id("alpha")))
    assert "acme has this program id on sim already, in alpha/program.yaml" in str(twin.exception)
    broken = uho("register", folder_of(tmp_path, "broken", idl={"types": []}))
    assert isinstance(broken.exception, ProgramRefusedError)
    assert [path.name for path in settings.programs_dir.iterdir()] == ["alpha"]
    shutil.copytree(tmp_path / "new" / "broken", settings.programs_dir / "broken")
    listed = uho("programs")
    assert listed.exit_code == 1
    assert "sim/acme/alpha" in listed.output
    assert "refused: broken/program.yaml: idls" in listed.output
    with connect(warehouse, application_name="test") as connection:
        assert connection.execute("SELECT program FROM uho.program").fetchall() == [("alpha",)]


def test_a_warehouse_user_that_may_not_make_roles_is_told_what_to_ask_for(settings, warehouse, tmp_path):
    assert uho("register", folder_of(tmp_path, "alpha")).exit_code == 0
    program = load_registry(settings).program("alpha")
    other = folder_of(tmp_path, "beta", "globex")
    shutil.copytree(other, settings.programs_dir / "beta")
    beta = load_registry(settings).program("beta")
    with connect(warehouse, application_name="test") as connection:
        connection.execute(
            "INSERT INTO uho.program SELECT network, 'globex', 'beta', %s, 'globex_sim_beta' FROM uho.program",
            [beta.program_id],
        )
        connection.execute("CREATE ROLE maker NOLOGIN")
        connection.execute("GRANT CREATE ON DATABASE uho TO maker")
        connection.execute("GRANT USAGE ON SCHEMA uho TO maker")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA uho TO maker")
        connection.commit()
        connection.execute("SET ROLE maker")
        connection.commit()
        with pytest.raises(OwnerRoleError, match='CREATE ROLE "globex" NOLOGIN'):
            ensure_tables(connection, beta, [])
    assert program.owner == "acme"
