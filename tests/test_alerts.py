"""Alerts end to end: real runs fail in a real event log, and real servers are told of it, once per cause."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dagster as dg
import pytest
from aiosmtpd.controller import Controller
from services import free_port
from streams import IDL, make_settings, program_id
from typer.testing import CliRunner

from uho_pipelines import alerts, cli
from uho_pipelines.alerts import AlertsUndeliveredError, alerts_sensor, cause_of, collect, deliver
from uho_pipelines.assets import events_key
from uho_pipelines.chunks import Chunk
from uho_pipelines.registry import load_registry
from uho_pipelines.runtime.stack import settings_environment
from uho_pipelines.settings import AlertSettings, EmailSettings
from uho_pipelines.warehouse import connect
from uho_pipelines.warehouse.ledger import clear_halt, fix_chunk_slots, register_program, set_halt

PROGRAM = f"""\
program_id: {program_id("alpha")}
network: sim
owner: demo
first_slot: 0
last_slot: 299
idls:
  - {{from_slot: 0, file: idl.json}}
"""
SECRET = "T0PSECRET"


@dataclass
class Told:
    """A server that is told of alerts: what it got, and what it answers."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Statuses and headers of the answers to come; none left: 200."""


@contextmanager
def webhook() -> Iterator[Told]:
    told = Told()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers = told.answers.pop(0) if told.answers else (200, {})
            if status == 200:
                told.bodies.append(body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_address[1]}/hooks/{SECRET}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


class Mailbox:
    """What an SMTP server took."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.messages.append(envelope)
        return "250 taken"


@pytest.fixture
def told():
    with webhook() as server:
        yield server


@pytest.fixture
def instance(monkeypatch):
    monkeypatch.setattr(alerts, "SETTLED_SECONDS", -1.0)
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def settings(warehouse, tmp_path, told):
    folder = tmp_path / "programs" / "alpha"
    folder.mkdir(parents=True)
    (folder / "program.yaml").write_text(PROGRAM)
    (folder / "idl.json").write_text(json.dumps({**IDL, "address": str(program_id("alpha"))}))
    return make_settings(
        tmp_path,
        programs_dir=tmp_path / "programs",
        postgres_url=warehouse,
        ui_url="https://dagster.example.org/",
        alerts=AlertSettings(webhook_url=told.url),
    )


@pytest.fixture
def programs(settings):
    return load_registry(settings).programs


def fail(instance, text, **tags):
    """Run a job that fails so."""

    @dg.op
    def broken():
        raise dg.Failure(description=text, allow_retries=False)

    @dg.job
    def reading():
        broken()

    return reading.execute_in_process(instance=instance, raise_on_error=False, tags=tags)


def look(settings, programs, instance):
    """Do what the sensor does in a tick."""
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        opened = collect(connection, settings, programs, instance)
        return len(opened), deliver(connection, settings)


def shown(settings, monkeypatch):
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(cli.app, ["alerts", "--json"], catch_exceptions=False)
    return json.loads(result.output)


def test_runs_that_fail_for_one_reason_are_one_message(settings, programs, instance, told, monkeypatch):
    for chunk in range(20):
        text = f"the archive answered chunk {chunk:010d} at offset {chunk * 7_919:,} with status 502"
        fail(instance, text, **{"dagster/backfill": "abcdefgh"})
    fail(instance, f"the disk has {3:,} bytes left; see postgresql://uho:{SECRET}@db/uho")
    assert look(settings, programs, instance) == (2, (2, []))
    assert look(settings, programs, instance) == (0, (0, [])), "told once"
    fail(instance, "the archive answered chunk 0000099000 at offset 12 with status 502")
    assert look(settings, programs, instance) == (0, (0, []))
    first, second = told.bodies
    assert first["title"].startswith("runs of backfill abcdefgh failed: the archive answered chunk 0000000000")
    assert first["link"] == "https://dagster.example.org/runs/b/abcdefgh"
    assert second["link"].startswith("https://dagster.example.org/runs/")
    assert "the disk has 3 bytes left; see postgresql://***@db/uho" in second["text"]
    assert SECRET not in json.dumps(told.bodies)
    newest, oldest = shown(settings, monkeypatch)
    assert (oldest["occurrences"], newest["occurrences"]) == (21, 1)
    assert [delivery["attempts"] for delivery in oldest["deliveries"]] == [1]


def test_a_cause_that_comes_back_after_a_quiet_time_is_told_again(settings, programs, instance, told, warehouse):
    fail(instance, "the sidecar does not answer")
    look(settings, programs, instance)
    with connect(warehouse, application_name="test") as connection:
        connection.execute("UPDATE uho.alert SET last_at = last_at - interval '7 hours'")
    fail(instance, "the sidecar does not answer")
    assert look(settings, programs, instance) == (1, (1, []))
    assert len({body["id"] for body in told.bodies}) == 2


def test_what_is_retried_by_itself_is_not_told(settings, programs, instance, told):
    fail(instance, "the worker vanished", **{"dagster/will_retry": "true"})
    assert look(settings, programs, instance) == (0, (0, []))


def test_a_failed_check_is_told_with_its_page_and_its_run_is_not_told_again(settings, programs, instance, told):
    key = events_key(programs[0])

    @dg.asset(key=key, check_specs=[dg.AssetCheckSpec("integrity", asset=key)])
    def events():
        said = "3 of 50 transactions differ from what the RPC node says."
        yield dg.AssetCheckResult(passed=False, description=said, check_name="integrity")
        raise dg.Failure(description=f"sim/demo/alpha chunk 0000000100: {said}", allow_retries=False)

    dg.materialize([events], instance=instance, raise_on_error=False)
    assert look(settings, programs, instance) == (1, (1, []))
    (body,) = told.bodies
    assert body["title"] == "integrity of sim/demo/alpha_events failed"
    assert body["text"].startswith("3 of 50 transactions differ from what the RPC node says. More chunks")
    assert body["link"].endswith("/assets/sim/demo/alpha_events?view=checks&checkDetail=integrity")


def test_a_halt_is_told_once_and_so_are_its_runs_and_again_when_it_comes_back(
    settings, programs, instance, told, warehouse
):
    (program,) = programs
    with connect(warehouse, application_name="test") as connection:
        fix_chunk_slots(connection, "sim", 100)
        register_program(connection, program)
        set_halt(connection, program, Chunk(100, 100), "Chunk 0000000100: 30 of 100 records decode by no IDL version.")
    fail(instance, "sim/demo/alpha is halted: Chunk 0000000100: 30 of 100 records decode by no IDL version.")
    assert look(settings, programs, instance) == (1, (1, []))
    assert look(settings, programs, instance) == (0, (0, []))
    assert told.bodies[0]["title"] == "sim/demo/alpha is halted"
    assert "30 of 100 records decode by no IDL version. Its events are not loaded until" in told.bodies[0]["text"]
    with connect(warehouse, application_name="test") as connection:
        clear_halt(connection, program, "alice", "so it is")
    assert look(settings, programs, instance) == (0, (0, []))
    with connect(warehouse, application_name="test") as connection:
        set_halt(connection, program, Chunk(100, 100), "again")
    assert look(settings, programs, instance) == (1, (1, []))


def test_a_server_that_fails_is_tried_again_with_patience_and_the_failure_is_seen(
    settings, programs, instance, told, warehouse, monkeypatch
):
    told.answers = [(500, {}), (429, {"Retry-After": "900"})]
    fail(instance, "the sidecar does not answer")

    def waits():
        with connect(warehouse, application_name="test") as connection:
            (wait,) = connection.execute(
                "SELECT extract(epoch FROM next_attempt_at - now())::int FROM uho.alert_delivery"
            ).fetchone()
            connection.execute("UPDATE uho.alert_delivery SET next_attempt_at = now()")
        return wait

    sensor = alerts_sensor(settings, programs)
    with (
        dg.build_sensor_context(instance=instance) as context,
        pytest.raises(AlertsUndeliveredError, match=r"webhook \(127.0.0.1\): answered with status 500") as caught,
    ):
        sensor.evaluate_tick(context)
    assert SECRET not in str(caught.value)
    assert 25 < waits() <= 30
    _, (delivered, failures) = look(settings, programs, instance)
    assert (delivered, len(failures)) == (0, 1)
    assert 890 < waits() <= 900
    (alert,) = shown(settings, monkeypatch)
    assert alert["deliveries"][0]["deliveredAt"] is None
    assert alert["deliveries"][0]["error"] == "webhook (127.0.0.1): answered with status 429"
    assert look(settings, programs, instance) == (0, (1, []))
    assert len(told.bodies) == 1


def test_a_delivery_that_nobody_marked_is_made_again_with_the_same_id(settings, programs, instance, told, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    fail(instance, "the sidecar does not answer")
    with monkeypatch.context() as patch:
        patch.setattr(alerts, "mark_delivered", killed)
        with pytest.raises(KeyboardInterrupt):
            look(settings, programs, instance)
    assert look(settings, programs, instance) == (0, (1, []))
    first, again = told.bodies
    assert first == again


def test_slack_and_mail_say_the_same_and_nothing_in_it_is_markup(settings, programs, instance, told, monkeypatch):
    mailbox = Mailbox()
    port = free_port()
    server = Controller(mailbox, hostname="127.0.0.1", port=port)
    server.start()
    try:
        email = EmailSettings(
            host="127.0.0.1", port=port, tls="none", sender="uho@example.org", recipients=("a@example.org", "b@x.org")
        )
        settings = settings.model_copy(update={"alerts": AlertSettings(slack_url=told.url, email=email)})
        fail(instance, "no <!channel> & no *stars*\r\nBcc: c@example.org")
        assert look(settings, programs, instance) == (1, (2, []))
        (slack,) = told.bodies
        assert {block["text"]["type"] for block in slack["blocks"][:2]} == {"plain_text"}
        assert slack["blocks"][2]["text"]["text"].endswith("|Open in Dagster>")
        assert "no &lt;!channel&gt; &amp; no" in slack["text"]
        (envelope,) = mailbox.messages
        assert envelope.rcpt_tos == ["a@example.org", "b@x.org"]
        text = envelope.content.decode()
        assert "no <!channel> & no *stars*" in text
        assert "https://dagster.example.org/runs/" in text.replace("=\r\n", "")
        assert "\nBcc:" not in text.split("\r\n\r\n")[0]
        for name, value in settings_environment(settings).items():
            monkeypatch.setenv(name, value)
        tested = CliRunner().invoke(cli.app, ["alerts", "test"])
        assert (tested.exit_code, tested.output.split()) == (0, ["Slack:", "taken", "e-mail:", "taken"])
    finally:
        server.stop()


def test_without_a_channel_alerts_are_kept_all_the_same(settings, programs, instance, monkeypatch):
    settings = settings.model_copy(update={"alerts": AlertSettings()})
    fail(instance, "the sidecar does not answer")
    assert look(settings, programs, instance) == (1, (0, []))
    (alert,) = shown(settings, monkeypatch)
    assert alert["title"].endswith("the sidecar does not answer")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("chunk 0000000100: 3 of 50", "chunk 0000000200: 14 of 50", True),
        ("run 7d0fb4a0-66be-4c79-a4b2-5f8f5e0a6c11", "run 11111111-66be-4c79-a4b2-5f8f5e0a6c11", True),
        ("digest 0123456789abcdef", "digest fedcba9876543210", True),
        ("the disk is full", "the archive is gone", False),
        ("sim/demo/alpha: refused", "sim/demo/beta: refused", False),
    ],
)
def test_numbers_and_identifiers_make_no_new_cause(one: str, other: str, same: bool) -> None:
    assert (cause_of("run", "", one) == cause_of("run", "", other)) is same
