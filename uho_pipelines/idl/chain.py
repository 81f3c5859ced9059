"""An Anchor IDL account, read from the chain by JSON-RPC: its address, its content, the slot of its last change.

What belongs here: asking an RPC endpoint, and taking an account's bytes apart. Both are hostile: answers and inflated
content are bounded, redirects are refused, and the endpoint's URL, which often has a key in it, is never shown. What is
kept of it is `fetch.py`'s business.
"""

import base64
import binascii
import json
import zlib
from dataclasses import dataclass
from typing import Any

import requests
from solders.pubkey import Pubkey
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from uho_pipelines.errors import UhoError
from uho_pipelines.redaction import redact
from uho_pipelines.registry import IDL_BYTES
from uho_pipelines.settings import Settings

IDL_SEED = "anchor:idl"
IDL_ACCOUNT = bytes([24, 70, 98, 191, 58, 144, 123, 158])
"""The discriminator of Anchor's IDL account: the first 8 bytes of SHA-256 of `internal:IdlAccount`."""

HEADER_BYTES = len(IDL_ACCOUNT) + 32 + 4
"""Discriminator, authority, length (little endian) of the deflated IDL that follows."""

ANSWER_BYTES = 32 * 1024 * 1024
"""An RPC answer may have so many bytes: an account has 10 MiB at most, a third more in base64."""

TIMEOUT_SECONDS = (10, 60)
"""To connect, and between two bytes."""

ATTEMPTS = 4
SIGNATURES = 1_000
"""So many of the account's newest transactions are looked at for one that succeeded."""

WAIT_SECONDS = 1.0
"""Before the second attempt; then twice as long each time."""


class RpcMissingError(UhoError):
    """No RPC endpoint is set for a network."""

    def __init__(self, network: str) -> None:
        super().__init__(f"no RPC endpoint is set for {network}: set UHO_NETWORKS__{network.upper()}__RPC_URL")


class RpcError(UhoError):
    """The RPC endpoint does not answer as it should."""

    def __init__(self, network: str, method: str, reason: str, *, can_pass: bool = False) -> None:
        self.can_pass = can_pass
        super().__init__(f"the RPC endpoint of {network} ({method}): {redact(reason)}")


class IdlAccountError(UhoError):
    """A program has no IDL account, or what is in it is no IDL."""

    def __init__(self, program_id: str, reason: str) -> None:
        super().__init__(f"{program_id}: {reason}")


@dataclass(frozen=True)
class OnChainIdl:
    """An IDL as it is on the chain; `changed_slot` is the slot of the account's last change, None: not told."""

    address: str
    json: bytes
    changed_slot: int | None


def idl_address(program_id: Pubkey) -> Pubkey:
    """Return the address at which Anchor keeps a program's IDL."""
    signer, _ = Pubkey.find_program_address([], program_id)
    return Pubkey.create_with_seed(signer, IDL_SEED, program_id)


def read_on_chain_idl(settings: Settings, network: str, program_id: Pubkey) -> OnChainIdl:
    """Return a program's IDL from its Anchor IDL account.

    Raises:
        UnknownNetworkError, RpcMissingError
        RpcError: the endpoint does not answer, after `ATTEMPTS` where that can pass.
        IdlAccountError: there is no such account, or it holds no IDL.
    """
    url = settings.network(network).rpc_url
    if url is None:
        raise RpcMissingError(network)
    rpc = _Rpc(network, url.get_secret_value())
    address = idl_address(program_id)
    found = rpc.call("getAccountInfo", [str(address), {"encoding": "base64", "commitment": "finalized"}])
    account = found.get("value") if isinstance(found, dict) else None
    if account is None:
        reason = (
            f"there is no Anchor IDL account ({address}) on {network}. Newer programs keep it by the Program Metadata "
            "program, which is not read here: save the IDL as a file yourself"
        )
        raise IdlAccountError(str(program_id), reason)
    content = _account_data(str(program_id), account)
    return OnChainIdl(str(address), inflate_idl(str(program_id), content), _changed_slot(rpc, address))


def inflate_idl(program_id: str, content: bytes) -> bytes:
    """Return the IDL in an account's bytes.

    Raises:
        IdlAccountError: they are no IDL account, or inflate to more than an IDL may have.
    """

    def refused(reason: str) -> IdlAccountError:
        return IdlAccountError(program_id, f"its IDL account {reason}")

    if len(content) < HEADER_BYTES or not content.startswith(IDL_ACCOUNT):
        raise refused(f"is none of Anchor's ({len(content):,} bytes)")
    length = int.from_bytes(content[HEADER_BYTES - 4 : HEADER_BYTES], "little")
    deflated = content[HEADER_BYTES : HEADER_BYTES + length]
    if len(deflated) < length:
        raise refused(f"says {length:,} bytes of IDL and has {len(deflated):,}")
    inflater = zlib.decompressobj()
    try:
        # No more is ever inflated, whatever the few bytes of the account stand for.
        inflated = inflater.decompress(deflated, IDL_BYTES + 1)
    except zlib.error:
        raise refused("is not deflated as zlib does") from None
    if len(inflated) > IDL_BYTES:
        raise refused(f"inflates to more than {IDL_BYTES:,} bytes")
    if not inflater.eof:
        raise refused("ends within the deflated IDL")
    return inflated


def _account_data(program_id: str, account: Any) -> bytes:  # noqa: ANN401 - any JSON
    try:
        owner, (text, encoding) = account["owner"], account["data"]
        content = base64.b64decode(text, validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise IdlAccountError(program_id, "the RPC endpoint's answer is no account in base64") from None
    if encoding != "base64" or owner != program_id:
        raise IdlAccountError(program_id, f"its IDL account belongs to {str(owner)[:44]!r}, not to the program")
    return content


def _changed_slot(rpc: "_Rpc", address: Pubkey) -> int | None:
    """Return the slot of the newest transaction of the account that succeeded; None where that is not told."""
    try:
        found = rpc.call("getSignaturesForAddress", [str(address), {"limit": SIGNATURES, "commitment": "finalized"}])
    except RpcError:
        return None  # The caller says what was assumed.
    newest = [
        entry["slot"]
        for entry in (found if isinstance(found, list) else [])
        if isinstance(entry, dict) and entry.get("err") is None and isinstance(entry.get("slot"), int)
    ]
    return max(newest, default=None)


class _Rpc:
    """A JSON-RPC endpoint."""

    def __init__(self, network: str, url: str) -> None:
        self.network = network
        self.url = url

    def call(self, method: str, parameters: list[Any]) -> Any:  # noqa: ANN401 - any JSON
        """Return the result; what can pass is tried again."""
        again = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, RpcError) and error.can_pass),
            wait=wait_exponential(multiplier=WAIT_SECONDS, max=20),
            stop=stop_after_attempt(ATTEMPTS),
            reraise=True,
        )
        return again(self._once, method, parameters)

    def _once(self, method: str, parameters: list[Any]) -> Any:  # noqa: ANN401 - any JSON
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
        try:
            with requests.post(
                self.url, json=body, timeout=TIMEOUT_SECONDS, allow_redirects=False, stream=True
            ) as response:
                status = response.status_code
                if status != requests.codes.ok:
                    can_pass = status == requests.codes.too_many_requests or status >= requests.codes.server_error
                    raise RpcError(self.network, method, f"answers with status {status}", can_pass=can_pass)
                content = bytearray()
                for piece in response.iter_content(65_536):
                    content += piece
                    if len(content) > ANSWER_BYTES:
                        raise RpcError(self.network, method, f"answers with more than {ANSWER_BYTES:,} bytes")
        except requests.RequestException as error:
            # The error's own text has the URL in it.
            reason = f"cannot be reached ({type(error).__name__})"
            raise RpcError(self.network, method, reason, can_pass=True) from None
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise RpcError(self.network, method, "answers with something that is no JSON") from None
        if not isinstance(answer, dict) or "result" not in answer:
            fault = answer.get("error") if isinstance(answer, dict) else None
            message = str(fault.get("message", ""))[:200] if isinstance(fault, dict) else "no result"
            raise RpcError(self.network, method, f"refuses: {message!r}")
        return answer["result"]
