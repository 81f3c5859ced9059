"""What of a text is a credential.

Keys in the path of an RPC service's URL are hidden, as those in its query are: a long run of letters and digits without
a dot, on any host but this machine. What names a file, an epoch or a program of ours stays readable.
"""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uho_pipelines.redaction import redact

SECRET = "s3cr3tS3cr3tS3cr3tS3cr3t"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://user:{SECRET}@host/a", "https://***@host/a"),
        (f"https://{SECRET}@host", "https://***@host"),
        (f"http+unix://user:{SECRET}@%2Fpath", "http+unix://***@%2Fpath"),
        (f"postgresql://uho:{SECRET}@db:5432/uho?sslmode=require", "postgresql://***@db:5432/uho?sslmode=require"),
        (f"postgresql+psycopg2://uho:{SECRET}@/uho?host=/run", "postgresql+psycopg2://***@/uho?host=/run"),
        (f"postgres://uho:not/escaped@{SECRET}@db/uho", "postgres://***@db/uho"),
        (f"GET https://archive/x?a=1&api_key={SECRET}&b=2: 404", "GET https://archive/x?a=1&api_key=***&b=2: 404"),
        (f"https://rpc/?api-key={SECRET}", "https://rpc/?api-key=***"),
        (f"https://rpc/?apikey={SECRET}#top", "https://rpc/?apikey=***#top"),
        (f"https://rpc/?token={SECRET}", "https://rpc/?token=***"),
        (f"https://rpc/?ACCESS_TOKEN={SECRET}", "https://rpc/?ACCESS_TOKEN=***"),
        (f"https://s3/b?X-Amz-Signature={SECRET}", "https://s3/b?X-Amz-Signature=***"),
        (f"https://s3/b?X-Amz-Credential={SECRET}&partNumber=1", "https://s3/b?X-Amz-Credential=***&partNumber=1"),
        (f"https://rpc.example/v2/{SECRET}", "https://rpc.example/v2/***"),
        (f"https://rpc.example/{SECRET}/", "https://rpc.example/***/"),
        (f"wss://name.rpc.example/{SECRET}: closed", "wss://name.rpc.example/***: closed"),
        ("https://rpc.example/0f4c2d1e-1111-4222-8333-944445555666", "https://rpc.example/***"),
        (f"host=db user=uho password={SECRET} dbname=uho", "host=db user=uho password=*** dbname=uho"),
        (f"password = '{SECRET} with \\' quotes' port=1", "password = *** port=1"),
        (f"PGPASSWORD={SECRET}", "PGPASSWORD=***"),
        (f"UHO_SIDECAR_SECRET={SECRET}", "UHO_SIDECAR_SECRET=***"),
        (f"Authorization: Bearer {SECRET}", "Authorization: ***"),
        (f"{{'Authorization': 'Basic {SECRET}'}}", "{'Authorization': '***'}"),
        (f"sent bearer {SECRET}, refused", "sent bearer ***, refused"),
    ],
)
def test_credentials_are_hidden(text, shown):
    assert redact(text) == shown
    assert SECRET not in redact(f"first line\n  {text}\nlast line")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sim/demo/alpha chunk 0000000100: offset 345 of epoch 800",
        "https://files.example/800/epoch-800.car",
        "https://files.example/bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku.car",
        "https://host:8080/a/b?page=2&key-frames=3",
        "http://127.0.0.1:3001/backfill/0f4c2d1e-1111-4222-8333-944445555666",
        "http://localhost:3000/runs/0f4c2d1e-1111-4222-8333-944445555666",
        "file:///srv/archive/800",
        "mail somebody@example.com",
        "no password was given",
        "password authentication failed for user uho",
        "tokens: 7, signature 5VERv8NMvzbJMEkV8xnrLkEaWRtSz9CosKDYjCJjBRnbJLgp8uirBgmQpjKhoR4tjF3ZpRzrFmBV6UjKdiSZkQUW",
        "monkey=banana turkey=dinner",
    ],
)
def test_what_is_no_credential_stays(text):
    assert redact(text) == text


@given(st.text(alphabet=st.characters(exclude_categories=["C", "Z"], exclude_characters="/?#@'\"<>\\"), min_size=8))
def test_a_password_never_survives_in_a_url(password):
    for scheme in ("https", "postgresql", "s3"):
        assert redact(f"{scheme}://somebody:{password}@host/path") == f"{scheme}://***@host/path"


@given(st.text())
def test_redacting_twice_changes_nothing_more(text):
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "hostile",
    ["a" * 200_000, "a://" * 50_000, "postgres://" * 20_000, "https://a" + "/a1" * 60_000, "?key" * 50_000,
     "password=" * 20_000, "password='" + "\\" * 200_000, "Authorization: " * 20_000, "bearer " * 30_000,
     "https://h/" + "a1" * 100_000 + "!"],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_hostile_text_takes_no_time(hostile):
    began = time.perf_counter()
    redact(hostile)
    assert time.perf_counter() - began < 2
