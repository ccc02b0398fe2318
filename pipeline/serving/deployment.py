"""An ASGI application as a deployment of Ray Serve: one replica, on this machine, until the block ends."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from starlette.types import ASGIApp

from pipeline.errors import InputError, RunFailed

AT_ONCE = 128
"""Requests that the replica works on at once."""
QUEUED = 256
"""Requests that wait for it, before the proxy says 503."""
REQUEST_S = 300
"""Seconds until a request is given up, so that a slow upload holds nothing for ever."""
LAST_S = 5
"""Seconds for requests that are under way when the server ends."""


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def free(address: Address) -> Address:
    """The address, port 0 being exchanged for one that nobody has.

    Raises:
        InputError: nobody can listen there, or somebody does.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        except OSError as error:
            raise InputError(
                f"--host {address.host} --port {address.port}: cannot be listened on ({error.strerror or error}); name others, "
                "or --port 0 for any free one"
            ) from error
        return Address(address.host, trial.getsockname()[1])


@contextmanager
def deployed(build: Callable[[], ASGIApp], address: Address, *, gpus: int = 0) -> Iterator[None]:
    """The application that `build` makes in the replica, answering at the address; all of Ray ends with the block.

    What is taught lies on this machine's disk, so that no cluster is joined.

    Raises:
        RunFailed: the replica does not start.
    """
    # Serve reads it when it is imported: its notices say nothing that a user of metashard can act on.
    os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"
    import ray  # takes seconds, as in session.py
    from ray import serve

    ray.init(
        address="local",
        num_cpus=1,
        num_gpus=gpus,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"host": address.host, "port": address.port, "request_timeout_s": REQUEST_S})
        replica = serve.deployment(
            serve.ingress(build)(),
            name="metashard",
            num_replicas=1,
            max_ongoing_requests=AT_ONCE,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=LAST_S,
            max_queued_requests=QUEUED,
            ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        try:
            serve.run(replica.bind(), name="metashard", route_prefix="/")
        except RuntimeError as error:
            raise RunFailed(f"the server did not start: {error}") from error
        yield
        # Requests under way are answered; Ray ends the rest by itself.
        serve.delete("metashard")
    finally:
        ray.shutdown()
