"""The command `uho`: what a person does from the shell.

What belongs here: arguments, messages and exit codes. The work is in the modules that each command calls, imported by
the command itself so that `uho --help` answers at once.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    name="uho",
    help="Backfill a Solana program's whole event history from the Old Faithful archive into Postgres, "
    "proved complete.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
idl_app = typer.Typer(help="Look at IDLs: what changes between versions, what is on the chain.", no_args_is_help=True)
app.add_typer(idl_app, name="idl")
alerts_app = typer.Typer(help="What went wrong, and who was told.")
app.add_typer(alerts_app, name="alerts")
stall_app = typer.Typer(help="Programs that fell behind the archive they follow.", no_args_is_help=True)
app.add_typer(stall_app, name="stall")
PIPED_COLUMNS = 500
"""Columns where no terminal says how many it has: what goes into a file or through a pipe keeps its lines whole."""


def _console(*, stderr: bool) -> Console:
    told = (sys.stderr if stderr else sys.stdout).isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if told else PIPED_COLUMNS)


console = _console(stderr=False)
errors = _console(stderr=True)

ProgramName = Annotated[str, typer.Argument(help="The program's folder name, or network/owner/name.")]
FromSlot = Annotated[int | None, typer.Option(min=0, help="First slot wanted; default: the program's first.")]
ToSlot = Annotated[int | None, typer.Option(min=0, help="Last slot, inclusive; default: the last there is.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, for other programs.")]


@app.command()
def up() -> None:
    """Start Postgres, the sidecar and Dagster, and say where the UI is. Ctrl-C stops all of it."""
    from uho_pipelines.runtime.stack import running_stack
    from uho_pipelines.settings import load_settings

    settings = load_settings()
    with running_stack(settings, console.print) as stack:
        console.print(
            f"Dagster: [bold]{stack.url}[/bold]   logs: {settings.home / 'logs'}   Ctrl-C stops everything",
            soft_wrap=True,
        )
        while True:
            time.sleep(1)
            stack.watch()


@app.command()
def demo() -> None:
    """Backfill a simulated archive through Dagster and compare every row with the truth."""
    from uho_pipelines.demo import run_demo
    from uho_pipelines.settings import load_settings

    raise typer.Exit(0 if run_demo(load_settings(), console) else 1)


@app.command()
def backfill(
    program: ProgramName,
    from_slot: FromSlot = None,
    to_slot: ToSlot = None,
) -> None:
    """Backfill a program's chunks here, one after another, with the same assets and checks as in Dagster."""
    from uho_pipelines.backfill import run_backfill
    from uho_pipelines.settings import load_settings

    raise typer.Exit(0 if run_backfill(load_settings(), program, from_slot, to_slot, console) else 1)


@app.command()
def estimate(
    program: ProgramName,
    from_slot: FromSlot = None,
    to_slot: ToSlot = None,
    megabytes: Annotated[int, typer.Option(min=1, max=1024, help="MiB of the archive to read at most.")] = 16,
    precision: Annotated[
        float,
        typer.Option(min=0.001, max=1, help="Reading ends before when intervals are this narrow, of the estimate."),
    ] = 0.1,
    json: AsJson = False,
) -> None:
    """Estimate from a few blocks what a backfill would find, how long it would read, and what it takes in Postgres."""
    from uho_pipelines.estimate import run_estimate
    from uho_pipelines.settings import load_settings

    run_estimate(
        load_settings(),
        program,
        from_slot,
        to_slot,
        megabytes=megabytes,
        precision=precision,
        as_json=json,
        console=console,
    )


@app.command()
def preview(
    program: ProgramName,
    slot: Annotated[int, typer.Option(min=0, help="First slot to read.")],
    slots: Annotated[int, typer.Option(min=1, max=1000, help="So many slots.")] = 10,
    rows: Annotated[int, typer.Option(min=1, max=100, help="Rows of each event to show.")] = 3,
    json: AsJson = False,
) -> None:
    """Show decoded rows, the DDL that would be run, and what the IDL does not know. Nothing is stored."""
    from uho_pipelines.preview import run_preview
    from uho_pipelines.settings import load_settings

    run_preview(load_settings(), program, slot, slots, rows, as_json=json, console=console)


@app.command()
def replay(program: ProgramName, from_slot: FromSlot = None, to_slot: ToSlot = None) -> None:
    """Decode the records of the lake again and replace the rows, chunk after chunk. No archive is read."""
    from uho_pipelines.replay import run_replay
    from uho_pipelines.settings import load_settings

    raise typer.Exit(0 if run_replay(load_settings(), program, from_slot, to_slot, console) else 1)


@app.command()
def repair(program: ProgramName, from_slot: FromSlot = None, to_slot: ToSlot = None) -> None:
    """Decode exactly the quarantined records again, by the present IDL versions. No archive is read."""
    from uho_pipelines.repair import run_repair
    from uho_pipelines.settings import load_settings

    raise typer.Exit(0 if run_repair(load_settings(), program, from_slot, to_slot, console) else 1)


@app.command()
def status(
    program: Annotated[str | None, typer.Argument(help="A program; default: all of them.")] = None,
    json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Tell again every few seconds, backfills too.")] = False,
    seconds: Annotated[float, typer.Option(min=0.5, help="Between two looks of --watch.")] = 5.0,
) -> None:
    """Tell what the ledger knows: chunks, speed and estimate, proven slots, quarantine, halts, stalls, replays."""
    from uho_pipelines.settings import load_settings
    from uho_pipelines.status import run_status

    run_status(load_settings(), program, console, as_json=json, watch=seconds if watch else None)


@app.command()
def ready(program: Annotated[str | None, typer.Argument(help="A program; default: all of them.")] = None) -> None:
    """Exit with 0 if no program is halted, stalled or behind, else say which and exit with 1: for probes."""
    from uho_pipelines.settings import load_settings
    from uho_pipelines.status import run_ready

    raise typer.Exit(0 if run_ready(load_settings(), program, console) else 1)


@app.command()
def programs(json: AsJson = False) -> None:
    """List the registered programs, and what is wrong with the folders that are refused (then exit with 1)."""
    from uho_pipelines.registration import run_programs
    from uho_pipelines.settings import load_settings

    raise typer.Exit(0 if run_programs(load_settings(), console, as_json=json) else 1)


@app.command()
def register(
    folder: Annotated[Path, typer.Argument(help="A folder with program.yaml and IDLs; its name is the program's.")],
) -> None:
    """Check a program folder and add it: its tables, its owner's role, and a reload of the Dagster that runs."""
    from uho_pipelines.registration import run_register
    from uho_pipelines.settings import load_settings

    run_register(load_settings(), folder, console)


@alerts_app.callback(invoke_without_command=True)
def alerts(
    context: typer.Context,
    count: Annotated[int, typer.Option(min=1, max=1_000, help="So many, the newest first.")] = 20,
    json: AsJson = False,
) -> None:
    """Show what went wrong, how often, and whether people were told."""
    if context.invoked_subcommand is None:
        from uho_pipelines.alerts import run_alerts
        from uho_pipelines.settings import load_settings

        run_alerts(load_settings(), console, count=count, as_json=json)


@alerts_app.command("test")
def alerts_test() -> None:
    """Send a message by every channel that is set, and say which took it."""
    from uho_pipelines.alerts import run_alerts_test
    from uho_pipelines.settings import load_settings

    raise typer.Exit(0 if run_alerts_test(load_settings(), console) else 1)


@stall_app.command("clear")
def stall_clear(
    program: ProgramName,
    reason: Annotated[str, typer.Option(help="What it was; kept in uho.audit.")] = "it has caught up",
) -> None:
    """Take a program's stall away; refused while it is still behind."""
    from uho_pipelines.freshness import run_stall_clear
    from uho_pipelines.settings import load_settings

    run_stall_clear(load_settings(), program, reason, console)


@app.command()
def clear_halt(
    program: ProgramName,
    reason: Annotated[str, typer.Option(help="Why its events may be loaded all the same; kept in uho.audit.")],
) -> None:
    """Lift a program's halt, which stands while too few of its records decode."""
    from uho_pipelines.settings import load_settings
    from uho_pipelines.status import run_clear_halt

    run_clear_halt(load_settings(), program, reason, console)


@app.command()
def verify(
    program: ProgramName,
    from_slot: FromSlot = None,
    to_slot: ToSlot = None,
    json: AsJson = False,
) -> None:
    """Compare ledger, certificates, lake, quarantine and tables; name the chunks that differ and what mends each."""
    from uho_pipelines.settings import load_settings
    from uho_pipelines.verification import run_verify

    sound = run_verify(load_settings(), program, from_slot, to_slot, console, as_json=json)
    raise typer.Exit(0 if sound else 1)


@app.command()
def index(program: ProgramName) -> None:
    """Build the indexes that program.yaml asks for now, without loading; drop those it no longer asks for."""
    from uho_pipelines.backfill import run_index
    from uho_pipelines.settings import load_settings

    raise typer.Exit(0 if run_index(load_settings(), program, console) else 1)


@app.command()
def decode(
    payload: Annotated[str, typer.Argument(help="Hexadecimal or base64; - reads standard input.")],
    idl: Annotated[list[Path], typer.Option(help="An IDL file; several: versions, oldest first.")],
    explain: Annotated[bool, typer.Option("--explain", help="Show the bytes that each field came from.")] = False,
) -> None:
    """Decode one event's payload by IDL files, and print it as JSON."""
    import json

    from uho_pipelines.idl.payload import decode_payload, parse_payload

    text = sys.stdin.read() if payload == "-" else payload
    shown = decode_payload(idl, parse_payload(text), explain=explain)
    typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))


@app.command()
def dbt_sources(
    programs: Annotated[list[str] | None, typer.Argument(help="Programs; none given: all.")] = None,
) -> None:
    """Print a dbt project's sources.yml for the tables that were loaded."""
    from uho_pipelines.dbt import dbt_sources
    from uho_pipelines.reading import warehouse_of
    from uho_pipelines.registry import load_registry
    from uho_pipelines.settings import load_settings
    from uho_pipelines.warehouse import connect

    settings = load_settings()
    registry = load_registry(settings)
    wanted = [registry.program(name) for name in programs] if programs else list(registry.programs)
    with connect(warehouse_of(settings), application_name="uho dbt-sources") as connection:
        typer.echo(dbt_sources(connection, wanted), nl=False)


@idl_app.command("diff")
def idl_diff(
    before: Annotated[Path, typer.Argument(help="The older IDL file.")],
    after: Annotated[Path, typer.Argument(help="The newer one.")],
    from_slot: Annotated[int | None, typer.Option(min=1, help="The newer one's first slot, for column names.")] = None,
    schema: Annotated[str, typer.Option(help="The Postgres schema of the statements.")] = "my_program",
) -> None:
    """Show what changes between two IDL versions, and the migration it means."""
    from uho_pipelines.idl.diff import diff_idls

    for line in diff_idls(before, after, from_slot, schema).lines():
        typer.echo(line)


@idl_app.command("fetch")
def idl_fetch(
    program_id: Annotated[str, typer.Argument(help="The program's id.")],
    network: Annotated[str, typer.Option(help="Whose RPC endpoint is asked.")] = "mainnet",
    owner: Annotated[str, typer.Option(help="A new folder's owner.")] = "local",
    name: Annotated[str | None, typer.Option(help="A new folder's name; default: what the IDL says.")] = None,
) -> None:
    """Save a program's Anchor IDL from the chain, as a program folder."""
    from uho_pipelines.idl.fetch import fetch_idl
    from uho_pipelines.settings import load_settings

    fetched = fetch_idl(load_settings(), program_id, network, owner, name)
    for line in (str(fetched.file), *fetched.notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def postgres_url() -> None:
    """Print the URL of the warehouse, for psql and other clients (it contains the password)."""
    from uho_pipelines.runtime.postgres import EmbeddedPostgres
    from uho_pipelines.settings import load_settings

    settings = load_settings()
    if settings.postgres_url is not None:
        typer.echo(settings.postgres_url.get_secret_value())
    else:
        typer.echo(EmbeddedPostgres(settings.home).url("uho"))


def main() -> None:
    """Run the command; an error we know is one clear message and exit code 1, never a traceback."""
    from uho_pipelines.errors import UhoError

    # Both end everything in order, also where the shell started us in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except KeyboardInterrupt:
        errors.print("stopped")
        sys.exit(130)
    except UhoError as error:
        if os.environ.get("UHO_TRACEBACK"):
            raise
        errors.print(f"[bold red]error:[/bold red] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
