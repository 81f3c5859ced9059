"""Secrets the project makes for itself: one file each under `UHO_HOME/secrets`, readable by its owner only.

What belongs here: making and reading those files. Secrets that people set by environment variable live in
`uho_pipelines.settings`.
"""

import os
import secrets
from pathlib import Path


def read_or_create_secret(home: Path, name: str) -> str:
    """Return the secret `name` of `home`, making it (32 random bytes as URL-safe text) at first use.

    The file is created with mode 0600 in a folder of mode 0700, exclusively: of two processes that start at once,
    both return the secret of the one that was first.
    """
    folder = home / "secrets"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / name
    if not path.exists():
        aside = folder / f".{name}.{os.getpid()}.{secrets.token_hex(4)}"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(file.fileno())  # an empty secret after a power cut would be one that nobody knows to be wrong
        try:
            os.link(aside, path)
        except FileExistsError:
            pass
        finally:
            aside.unlink()
    return path.read_text(encoding="ascii").strip()
