"""Who asks, as a proxy tells it and as nobody else can; and one start of a backfill per person in a while."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier

import pytest
from starlette.datastructures import Headers
from streams import make_settings

from uho_pipelines.people import ANONYMOUS, StartTooSoonError, claim_start, user_of
from uho_pipelines.warehouse import connect
from uho_pipelines.warehouse.connection import WarehouseUnreachableError

PROXY, STRANGER = ("10.0.0.7", 4711), ("10.0.1.7", 4711)


@dataclass
class Request:
    """What the webserver knows of a request."""

    client: tuple[str, int] | None
    headers: Headers = field(default_factory=Headers)


@pytest.fixture
def settings(tmp_path, warehouse):
    yield make_settings(
        tmp_path, postgres_url=warehouse, user_header="X-Forwarded-User", trusted_proxies=["10.0.0.0/24"]
    )
    with connect(warehouse, application_name="test") as connection:
        connection.execute("TRUNCATE uho.backfill_start")


@pytest.mark.parametrize(
    ("client", "said", "user"),
    [
        (PROXY, {"X-Forwarded-User": "alice"}, "alice"),
        (PROXY, {"x-forwarded-user": " alice\x00\n "}, "alice"),
        (PROXY, {"X-Forwarded-User": "a" * 1_000}, "a" * 100),
        (PROXY, {"X-Forwarded-User": ""}, ANONYMOUS),
        (PROXY, {}, ANONYMOUS),
        (STRANGER, {"X-Forwarded-User": "alice"}, ANONYMOUS),
        (("testclient", 1), {"X-Forwarded-User": "alice"}, ANONYMOUS),
        (None, {"X-Forwarded-User": "alice"}, ANONYMOUS),
    ],
)
def test_a_person_is_who_a_trusted_proxy_says(settings, client, said, user):
    assert user_of(settings, Request(client, Headers(said))) == user


def test_without_a_header_nobody_is_told_apart(settings):
    unknown = settings.model_copy(update={"user_header": None})
    assert user_of(unknown, Request(PROXY, Headers({"X-Forwarded-User": "alice"}))) is None
    assert user_of(settings, None) == ANONYMOUS, "what comes past the webserver is nobody's"


def test_of_starts_at_once_one_is_let_through_and_the_others_are_told_when(settings):
    together = Barrier(8)

    def start(_):
        together.wait(60)
        try:
            claim_start(settings, "alice")
        except StartTooSoonError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(start, range(8)))
    refusals = [answer for answer in answers if answer is not None]
    assert len(refusals) == 7
    assert refusals[0].startswith("alice started a backfill less than 300 seconds ago; the next start is possible at")
    claim_start(settings, "bob")
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        connection.execute("UPDATE uho.backfill_start SET started_at = started_at - interval '300 seconds'")
    claim_start(settings, "alice")


def test_where_nobody_can_tell_the_start_is_refused(settings, tmp_path):
    away = settings.model_copy(
        update={"postgres_url": type(settings.postgres_url)(f"postgresql:///uho?host={tmp_path}")}
    )
    with pytest.raises(WarehouseUnreachableError):
        claim_start(away, "alice")
