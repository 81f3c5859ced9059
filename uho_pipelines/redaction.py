"""Taking credentials out of text before a person or a log sees it."""

import re

_USER_INFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)[^/@\s\"']*@")
_SECRET_PARAMETER = re.compile(
    r"(?P<name>[?&;](?:api[-_]?key|key|token|secret|password|auth|access[-_]?token|sig(?:nature)?)=)[^&;\s\"']*",
    re.IGNORECASE,
)
_KEYWORD_PASSWORD = re.compile(r"(?P<name>\bpassword\s*=\s*)(?:'(?:[^'\\]|\\.)*'|\S+)", re.IGNORECASE)
_BEARER = re.compile(r"(?P<name>\bBearer\s+)\S+", re.IGNORECASE)


def redact(text: str) -> str:
    """Return `text` without what URLs, query parameters, `password=…` and bearer tokens give away."""
    text = _USER_INFO.sub(r"\g<scheme>***@", text)
    text = _SECRET_PARAMETER.sub(r"\g<name>***", text)
    text = _KEYWORD_PASSWORD.sub(r"\g<name>***", text)
    return _BEARER.sub(r"\g<name>***", text)
