"""Who may ask a server: tokens, of which only hashes are kept, each until a day of its own."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, final

from pipeline.errors import InputError
from pipeline.serving.limits import Refused

VARIABLE = "METASHARD_TOKEN"
SHORTEST = 16
"""Characters of a token that somebody chose: its hash is not salted, so that it must not be guessed."""
RANDOM_BYTES = 32
PREFIX = "bearer "


class Known(NamedTuple):
    """The sha256 of a token in hexadecimal, and when it ends; none: never."""

    sha256: str
    expires: datetime | None


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def from_environment() -> str:
    """The hash of the token in the environment; empty where there is none.

    Raises:
        InputError: it can be guessed.
    """
    token = os.environ.get(VARIABLE, "")
    if token and len(token) < SHORTEST:
        raise InputError(
            f"{VARIABLE} has {len(token)} characters; give at least {SHORTEST}, as `openssl rand -hex 32` does"
        )
    return hashed(token) if token else ""


def add(file: Path, *, days: float | None) -> str:
    """A new token, whose hash is added to the file; it is told once and kept nowhere.

    Raises:
        InputError: the file holds something else.
    """
    if file.exists():
        read(file)
    token = secrets.token_urlsafe(RANDOM_BYTES)
    expires = None if days is None else (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="seconds")
    line = json.dumps({"sha256": hashed(token)} | ({"expires": expires} if expires else {})) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "w") as lines:
        lines.write(line)
    return token


def read(file: Path) -> tuple[Known, ...]:
    """The tokens of a file of JSON lines.

    Raises:
        InputError: it cannot be read, or a line is none.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--token-file {file}: cannot be read ({error}); make one by metashard token {file}"
        ) from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            expires = datetime.fromisoformat(said["expires"]) if "expires" in said else None
            known = Known(bytes.fromhex(said["sha256"]).hex(), expires)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f'--token-file {file}: line {number} is no {{"sha256": …, "expires": …}} ({error}); mend or remove it'
            ) from error
        if len(known.sha256) != 2 * hashlib.sha256().digest_size or (expires and expires.tzinfo is None):
            raise InputError(
                f"--token-file {file}: line {number} lacks half a hash or the time zone of its end; mend or remove it"
            )
        found.append(known)
    return tuple(found)


@final
class Tokens:
    """The tokens of a file, read anew when it changes, and those whose hashes are `fixed`; without either, all may ask."""

    def __init__(self, file: Path | None = None, fixed: Sequence[str] = ()):
        self._file, self._fixed = file, tuple(Known(sha256, None) for sha256 in fixed)
        self._seen: tuple[int, int, int] | None = None
        self._known: tuple[Known, ...] = ()
        if file is not None:
            self._refresh(file)

    @property
    def is_needed(self) -> bool:
        return self._file is not None or bool(self._fixed)

    def check(self, authorization: str) -> None:
        """What the header of that name says.

        Raises:
            Refused: it is no token that is valid now.
        """
        if not self.is_needed:
            return
        if self._file is not None:
            try:
                self._refresh(self._file)
            except InputError as error:
                raise Refused(503, "the server's file of tokens cannot be read; ask who runs it") from error
        if not authorization.lower().startswith(PREFIX):
            raise Refused(401, "a token is needed; send the header `Authorization: Bearer TOKEN`")
        given = hashed(authorization[len(PREFIX) :].strip())
        # All are compared, whichever fits, so that the time taken says nothing.
        fitting = [known for known in (*self._fixed, *self._known) if hmac.compare_digest(known.sha256, given)]
        if not fitting:
            raise Refused(401, "the token is not known here; ask for another")
        now = datetime.now(UTC)
        if all(known.expires is not None and known.expires <= now for known in fitting):
            ended = max(known.expires for known in fitting if known.expires is not None)
            raise Refused(401, f"the token expired at {ended.isoformat(timespec='seconds')}; ask for another")

    def _refresh(self, file: Path) -> None:
        try:
            stat = file.stat()
            now = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            now = None
        if now is None or now != self._seen:
            self._known, self._seen = (), None
            self._known, self._seen = read(file), now
