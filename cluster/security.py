"""Where Ray's token comes from, and what must not be sent where everybody can read it."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from cluster.errors import SubmitError

_SECRET_NAME = re.compile(r"token(?!iz)|secret|passw|credential|api_?key|access_?key|private_?key", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/\s@]*:[^/\s@]*@")
TOKEN_ENV, TOKEN_PATH_ENV, MODE_ENV = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"


def check_plain(name: str, value: str) -> None:
    """Raises `SubmitError` if a variable looks like a secret: targets show variables and commands to whoever asks."""
    if _SECRET_NAME.search(name) and not name.endswith("_PATH"):
        raise SubmitError(
            f"variable {name} looks like a secret, and variables are shown; set it in the cluster's own environment"
        )
    check_command([value])


def check_command(words: list[str]) -> None:
    """Raises `SubmitError` if a word holds a user's name and password."""
    if any(_SECRET_VALUE.search(word) for word in words):
        raise SubmitError("a URL with a password would be shown to whoever asks; give it through the environment")


def token() -> str:
    """Ray's token of this environment, as Ray itself looks for it; empty where there is none.

    Raises:
        SubmitError: its file can be read by others.
    """
    if given := os.environ.get(TOKEN_ENV):
        return given.strip()
    path = Path(os.environ.get(TOKEN_PATH_ENV) or Path.home() / ".ray" / "auth_token")
    try:
        mode = path.stat().st_mode
        found = path.read_text().strip()
    except OSError:
        return ""
    if mode & 0o077:
        raise SubmitError(f"{path} can be read by others (mode {mode & 0o777:o}); run: chmod 600 {path}")
    return found


def write_token(path: Path) -> None:
    """A new token in a file that only its owner can read; one that is there stays."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def is_loopback(address: str) -> bool:
    """Whether a URL means this machine."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(address: str, *, insecure: bool) -> None:
    """Raises `SubmitError` unless a Jobs API may be spoken to at this URL: whoever reaches it can run code there.

    To this machine anything goes; to another only with a token, and only over https unless `insecure`.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SubmitError(f"address = {address!r} is no URL of a Jobs API, as http://127.0.0.1:8265")
    check_command([address])
    if is_loopback(address):
        return
    if not token():
        raise SubmitError(
            f"address = {address}: no token for another machine; set {TOKEN_PATH_ENV} to a file with the cluster's token"
        )
    if parts.scheme == "http" and not insecure:
        raise SubmitError(
            f"address = {address}: plain http would show the token to the network; use https or a tunnel to "
            "http://127.0.0.1, or say --insecure"
        )
