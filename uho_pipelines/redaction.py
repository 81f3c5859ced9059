"""Taking credentials out of text before a person or a log sees it.

What belongs here: what counts as a credential in text. The text may be hostile and long, so every pattern is linear.
"""

import re

HIDDEN = "***"

_SCHEME = r"(?<![a-zA-Z0-9+.-])[a-zA-Z][a-zA-Z0-9+.-]{0,30}://"
"""The look-behind makes a run of letters one place to look at, not as many as it has letters."""

_POSTGRES_USER_INFO = re.compile(
    r"(?P<scheme>(?<![a-zA-Z0-9+.-])postgres(?:ql)?(?:\+[a-z0-9_]{1,20})?://)(?P<rest>[^\s\"'<>]*)", re.IGNORECASE
)

_USER_INFO = re.compile(rf"(?P<scheme>{_SCHEME})[^/?#\s\"'<>]*@")
_SECRET_PARAMETER = re.compile(
    r"(?P<name>[?&;](?:api[-_]?key|key|[a-z]*token|secret|[a-z]*password|passwd|pwd|auth|access[-_]?(?:key|token)"
    r"|sig(?:nature)?|x-amz-(?:credential|security-token|signature))=)[^&;#\s\"'<>]*",
    re.IGNORECASE,
)
_KEYWORD_PASSWORD = re.compile(
    r"(?P<name>\b(?:ssl)?(?:password|passfile|passwd)\s{0,4}=\s{0,4})(?:'(?:[^'\\]|\\.)*'|[^\s&]+)", re.IGNORECASE
)
_ENVIRONMENT = re.compile(
    r"(?P<name>(?<![A-Za-z0-9_])[A-Z0-9_]{0,60}(?:PASSWORD|SECRET|TOKEN|API_KEY|ACCESS_KEY)=)(?:'[^']*'|\"[^\"]*\"|\S+)"
)
_AUTHORIZATION = re.compile(
    r"(?P<name>\bAuthorization[\"']?\s{0,4}[:=]\s{0,4}[\"']?)(?:[a-z]{1,20}\s+)?[^\s\"',]+", re.IGNORECASE
)
_BEARER = re.compile(r"(?P<name>\bBearer\s+)[^\s\"',]+", re.IGNORECASE)

_HTTP_URL = re.compile(r"(?P<host>(?<![a-zA-Z0-9+.-])(?:https?|wss?)://[^/?#\s\"'<>]+)(?P<path>/[^?#\s\"'<>]*)")
_KEY_IN_PATH = re.compile(r"(?<=/)(?=[A-Za-z_-]*[0-9])(?=[0-9_-]*[A-Za-z])[A-Za-z0-9_-]{20,}(?=/|$|[),;:.]*$)")
"""RPC services put the key into the path. What names a file has a dot in it and stays."""

_LOOPBACK = re.compile(r"://(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]+)?$")


def redact(text: str) -> str:
    """Return `text`, a URL or any text with URLs in it, without the credentials.

    Hidden are: users and passwords of URLs, query parameters that are called like secrets, keys in the paths of http
    URLs (but not of this machine's), `password=…` of connection strings, `…_SECRET=…` and
    its like of environments, authorization headers and bearer tokens.
    """
    text = _POSTGRES_USER_INFO.sub(_without_user_info, text)
    text = _USER_INFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _HTTP_URL.sub(_without_key, text)
    text = _SECRET_PARAMETER.sub(rf"\g<name>{HIDDEN}", text)
    text = _KEYWORD_PASSWORD.sub(rf"\g<name>{HIDDEN}", text)
    text = _ENVIRONMENT.sub(rf"\g<name>{HIDDEN}", text)
    text = _AUTHORIZATION.sub(rf"\g<name>{HIDDEN}", text)
    return _BEARER.sub(rf"\g<name>{HIDDEN}", text)


def _without_user_info(url: re.Match[str]) -> str:
    """Hide up to the last `@`: people forget to escape a password's `/` and `@`, and then the error message has it."""
    _, at, rest = url["rest"].rpartition("@")
    return f"{url['scheme']}{HIDDEN}@{rest}" if at else url[0]


def _without_key(url: re.Match[str]) -> str:
    host, path = url["host"], url["path"]
    if _LOOPBACK.search(host):
        return url[0]
    return host + _KEY_IN_PATH.sub(HIDDEN, path)
