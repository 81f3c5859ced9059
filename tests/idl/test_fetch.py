"""`uho idl fetch` against a JSON-RPC server that answers as nodes do, and as they should not."""

import base64
import hashlib
import json
import threading
import tracemalloc
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from events import idl
from solders.pubkey import Pubkey
from streams import make_settings, program_id

from uho_pipelines.idl import chain
from uho_pipelines.idl.chain import IDL_ACCOUNT, IdlAccountError, RpcError, RpcMissingError, idl_address, inflate_idl
from uho_pipelines.idl.fetch import FetchRefusedError, fetch_idl
from uho_pipelines.idl.payload import IdlUnreadableError
from uho_pipelines.registry import IDL_BYTES, load_registry
from uho_pipelines.settings import NetworkSettings

PROGRAM = program_id("fetched")
KEY = "0123456789abcdefghij"
"""As RPC services put it into the path."""

IDL = idl({"Said": {"amount": "u64"}})


def account(content=IDL, *, deflated=None, length=None, head=IDL_ACCOUNT):
    """The bytes of an IDL account; what follows the IDL is room for a larger one."""
    deflated = zlib.compress(content) if deflated is None else deflated
    length = len(deflated) if length is None else length
    return head + bytes(32) + length.to_bytes(4, "little") + deflated + bytes(100)


class Node:
    """What the server answers: `value` is the account's, `signatures` the transactions', `statuses` come first."""

    def __init__(self):
        self.data, self.owner = account(), str(PROGRAM)
        self.signatures = [{"slot": 900, "err": {"x": 1}}, {"slot": 812, "err": None}, {"slot": 7, "err": None}]
        self.statuses, self.asked, self.raw = [], [], None

    def answer(self, method, parameters):
        self.asked.append((method, parameters[0]))
        if method == "getAccountInfo":
            if self.data is None:
                return {"result": {"context": {"slot": 1000}, "value": None}}
            value = {"data": [base64.b64encode(self.data).decode(), "base64"], "owner": self.owner, "lamports": 1}
            return {"result": {"context": {"slot": 1000}, "value": value}}
        if self.signatures is None:
            return {"error": {"code": -32601, "message": "Method not found"}}
        return {"result": self.signatures}


@contextmanager
def serving(node):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format, *args):  # noqa: A002
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = node.statuses.pop(0) if node.statuses else 200
            content = node.raw or json.dumps({"jsonrpc": "2.0", "id": 1, **node.answer(body["method"], body["params"])})
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
            if status == 200:
                self.wfile.write(content.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://user:secret@127.0.0.1:{server.server_port}/{KEY}?api-key={KEY}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def node():
    return Node()


@pytest.fixture
def settings(node, tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "WAIT_SECONDS", 0.0)
    (tmp_path / "programs").mkdir()
    with serving(node) as url:
        networks = {"sim": NetworkSettings(rpc_url=url, chunk_slots=100, checkpoint_slots=20)}
        yield make_settings(tmp_path, programs_dir=tmp_path / "programs", networks=networks)


def fetch(settings, **options):
    return fetch_idl(settings, str(PROGRAM), "sim", "acme", **options)


def test_the_address_and_the_discriminator_are_anchors():
    assert hashlib.sha256(b"internal:IdlAccount").digest()[:8] == IDL_ACCOUNT
    signer, _ = Pubkey.find_program_address([], PROGRAM)
    by_hand = hashlib.sha256(bytes(signer) + b"anchor:idl" + bytes(PROGRAM)).digest()
    assert bytes(idl_address(PROGRAM)) == by_hand


def test_an_idl_becomes_a_program_folder_from_the_slot_of_its_last_change(settings, node):
    fetched = fetch(settings)
    assert fetched.file.read_bytes() == IDL
    assert "In force from slot 812" in fetched.notes[1]
    registry = load_registry(settings)
    assert not registry.faults
    (program,) = registry.programs
    assert (program.key, program.program_id, program.first_slot) == ("sim/acme/demo", str(PROGRAM), 812)
    assert [(version.from_slot, version.json) for version in program.idls] == [(812, IDL)]
    assert node.asked == [
        (method, str(idl_address(PROGRAM))) for method in ("getAccountInfo", "getSignaturesForAddress")
    ]
    # Again: nothing new. Another IDL: a file beside, and what to write, but a person's program.yaml stays as it is.
    assert "has it already, from slot 812" in fetch(settings).notes[-1]
    node.data = account(idl({"Said": {"amount": "u128"}}))
    node.signatures.insert(0, {"slot": 950, "err": None})
    before = (program.folder / "program.yaml").read_bytes()
    fetched = fetch(settings)
    assert fetched.file == program.folder / "idl" / "demo-950.json"
    assert fetched.notes[-1].endswith("- {from_slot: 950, file: idl/demo-950.json}")
    assert (program.folder / "program.yaml").read_bytes() == before


def test_what_was_assumed_is_said_where_the_node_keeps_no_history(settings, node):
    node.signatures = None
    fetched = fetch(settings, name="other")
    assert "assumed is slot 0" in fetched.notes[1]
    assert load_registry(settings).program("other").idls[0].from_slot == 0


def test_what_can_pass_is_tried_again_and_what_cannot_is_not(settings, node):
    node.statuses = [429, 503, 200]
    assert fetch(settings).file.exists()
    asked = len(node.asked)
    node.statuses = [500] * 10
    with pytest.raises(RpcError, match=r"RPC endpoint of sim \(getAccountInfo\): answers with status 500"):
        fetch(settings)
    assert (len(node.asked), len(node.statuses)) == (asked + chain.ATTEMPTS, 6)
    node.statuses = [401]
    with pytest.raises(RpcError, match="status 401"):
        fetch(settings)
    node.statuses = [302]
    with pytest.raises(RpcError, match="status 302"):
        fetch(settings)
    assert node.statuses == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no Anchor IDL account"),
        (b"", "none of Anchor's"),
        (account(head=bytes(8)), "none of Anchor's"),
        (account(length=10**6), "says 1,000,000 bytes of IDL and has"),
        (account(deflated=b"not deflated"), "not deflated as zlib does"),
        (account(deflated=zlib.compress(IDL)[:-8]), "ends within"),
        (account(bytes(IDL_BYTES + 1)), "inflates to more than 16,777,216 bytes"),
    ],
)
def test_what_is_no_idl_is_refused_and_leaves_nothing(settings, node, data, reason):
    node.data = data
    with pytest.raises(IdlAccountError, match=reason):
        fetch(settings)
    assert list(settings.programs_dir.iterdir()) == []


def test_a_bomb_is_inflated_no_further_than_an_idl_may_go():
    bomb = account(bytes(100_000_000))
    assert len(bomb) < 200_000
    tracemalloc.start()
    with pytest.raises(IdlAccountError):
        inflate_idl("x", bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * IDL_BYTES


def test_an_idl_that_makes_no_decoder_is_not_saved(settings, node):
    for content in (b"[]", b'{"events": [{"name": "E"}]}', b"\xff"):
        node.data = account(content)
        with pytest.raises(IdlUnreadableError):
            fetch(settings)
    node.data, node.owner = account(), str(program_id("another"))
    with pytest.raises(IdlAccountError, match="not to the program"):
        fetch(settings)
    assert list(settings.programs_dir.iterdir()) == []


def test_nothing_leads_out_of_the_programs_folder(settings, node):
    for name in ("../evil", "Evil", "a/b", ".hidden"):
        with pytest.raises(FetchRefusedError, match="--name"):
            fetch(settings, name=name)
    document = json.loads(IDL)
    document["metadata"]["name"] = "Grüße/../.."
    node.data = account(json.dumps(document).encode())
    assert fetch(settings).file.parent.parent == settings.programs_dir / "gr__e______"
    for said in ("", "../x", 7):
        document["metadata"]["name"] = said
        node.data, node.owner = account(json.dumps(document).encode()), str(program_id("other"))
        with pytest.raises(FetchRefusedError, match="does not say what the program is called"):
            fetch_idl(settings, str(program_id("other")), "sim", "acme")
    with pytest.raises(FetchRefusedError, match="no program id"):
        fetch_idl(settings, "x", "sim", "acme")


def test_a_folder_that_is_somebody_elses_is_left_alone(settings):
    (settings.programs_dir / "demo").mkdir()
    with pytest.raises(FetchRefusedError, match="not this program's"):
        fetch(settings)
    assert list((settings.programs_dir / "demo").iterdir()) == []


def test_no_credential_is_ever_told(settings, node, tmp_path):
    texts = []
    for prepare in (
        lambda: setattr(node, "statuses", [500] * 9),
        lambda: setattr(node, "raw", "no json"),
        lambda: setattr(node, "raw", '{"error": {"message": "see https://user:secret@host/' + KEY + '"}}'),
    ):
        node.statuses, node.raw = [], None
        prepare()
        with pytest.raises(RpcError) as caught:
            fetch(settings)
        texts.append(str(caught.value))
    url = f"http://user:secret@127.0.0.1:1/{KEY}"
    gone = make_settings(tmp_path, networks={"sim": NetworkSettings(rpc_url=url, chunk_slots=100, checkpoint_slots=20)})
    with pytest.raises(RpcError, match="cannot be reached") as caught:
        fetch(gone)
    for text in (*texts, str(caught.value)):
        assert "secret" not in text
        assert KEY not in text
    with pytest.raises(RpcMissingError, match="UHO_NETWORKS__SIM__RPC_URL"):
        fetch(make_settings(tmp_path))
