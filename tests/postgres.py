"""A PostgreSQL of its own on this machine, on loopback alone, gone with the block."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from real_slurm import free_ports

PROGRAMS = ("initdb", "pg_ctl")
USER = "metashard"
SECRET = "only-on-loopback"


def find(program: str) -> str | None:
    """Debian puts the servers where the path does not lead."""
    places = [os.environ["PATH"], *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    return shutil.which(program, path=os.pathsep.join(places))


def lack() -> str:
    """Why there can be no server here; empty if there can."""
    if missing := [program for program in PROGRAMS if find(program) is None]:
        return f"no PostgreSQL on this machine: {', '.join(missing)} not found"
    if os.geteuid() == 0 and not (_account() and shutil.which("setpriv")):
        return "PostgreSQL does not run as root, and there is no user postgres or no setpriv"
    return ""


def _account() -> str:
    """The user of Debian's package, whom root may start the server as."""
    import pwd

    return next((entry.pw_name for entry in pwd.getpwall() if entry.pw_name == "postgres"), "")


@contextmanager
def serving(place: Path) -> Iterator[str]:
    """The URI of an empty database, while the block runs; `place` is a new folder that its server may enter.

    It names the driver: SQLAlchemy 2.1 takes another one where none is named.
    """
    place.mkdir(mode=0o755)
    secret, data = place / "secret", place / "data"
    secret.write_text(SECRET)
    as_whom: list[str] = []
    if os.geteuid() == 0:
        as_whom = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        for path in (place, secret):
            shutil.chown(path, "postgres", "postgres")

    def run(program: str, *words: str) -> None:
        command = [*as_whom, str(find(program)), "-D", str(data), *words]
        subprocess.run(command, check=True, cwd=place, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    run("initdb", "-U", USER, "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", "-E", "UTF8", "--locale=C")
    (port,) = free_ports(1)
    options = f"-h 127.0.0.1 -p {port} -c unix_socket_directories='' -c fsync=off"
    run("pg_ctl", "-w", "-l", str(place / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg2://{USER}:{SECRET}@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-w", "-m", "immediate", "stop")
