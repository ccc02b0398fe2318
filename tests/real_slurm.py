"""A Slurm of its own on this machine: one controller and four nodes, gone with the block."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun")
NODES = 4


def is_installed() -> bool:
    return all(find(program) for program in PROGRAMS)


def find(program: str) -> str | None:
    """Debian puts the servers where only root looks."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def configuration(place: Path, cpus: int) -> str:
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    controller, *nodes = free_ports(1 + NODES)
    return "\n".join(
        [
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={controller}",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            "AuthType=auth/none",
            "CredType=cred/none",
            # A job that is queued again waits for as long before it starts.
            "AuthInfo=cred_expire=5",
            f"StateSaveLocation={place}/state",
            f"SlurmdSpoolDir={place}/spool-%n",
            f"SlurmctldPidFile={place}/slurmctld.pid",
            f"SlurmdPidFile={place}/slurmd-%n.pid",
            f"SlurmctldLogFile={place}/slurmctld.log",
            f"SlurmdLogFile={place}/slurmd-%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SwitchType=switch/none",
            "MpiDefault=none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "SlurmdParameters=config_overrides",
            "ReturnToService=2",
            "KillWait=5",
            "MinJobAge=5",
            "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none",
            *(
                f"NodeName=n{number + 1} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}"
                for number, port in enumerate(nodes)
            ),
            f"PartitionName=main Nodes=n[1-{NODES}] Default=YES MaxTime=60 State=UP\n",
        ]
    )


@contextmanager
def started(place: Path, cpus: int = 2) -> Iterator[Path]:
    """Its configuration file, for SLURM_CONF."""
    (place / "state").mkdir(parents=True)
    conf = place / "slurm.conf"
    conf.write_text(configuration(place, cpus))
    environment = os.environ | {"SLURM_CONF": str(conf)}
    commands = [[find("slurmctld"), "-D", "-f", conf]]
    commands += [[find("slurmd"), "-D", "-N", f"n{number + 1}", "-f", conf] for number in range(NODES)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    servers = [subprocess.Popen(command, env=environment, **quiet) for command in commands]
    try:
        _until(lambda: said("sinfo", "-h", "-t", "idle", "-o", "%D", env=environment).strip() == str(NODES))
        yield conf
    finally:
        said("scancel", f"--user={getpass.getuser()}", env=environment)
        _until(lambda: not said("squeue", "-h", env=environment).strip())
        for server in servers:
            server.terminate()
        for server in servers:
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def said(*words: str, env: dict[str, str]) -> str:
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60).stdout


def _until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "Slurm does not come or does not end"
        time.sleep(0.2)
