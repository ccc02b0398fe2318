"""A server that speaks S3, and what a process has in its environment that may use it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

SECRET = "do-not-tell"


@contextmanager
def serving() -> Iterator[str]:
    """moto's server on a free port; its address."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


def variables(server: str) -> dict[str, str]:
    """What may read and write there, and nothing of the machine's own."""
    return {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "reader",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def put(server: str, path: str, content: bytes = b"") -> None:
    """Make the bucket /NAME, or write the object /NAME/KEY."""
    # The server asks for a signature of whoever overwrites, and does not check it.
    head = {
        "Content-Type": "application/octet-stream",
        "Authorization": "AWS4-HMAC-SHA256 Credential=reader/1/us-east-1/s3/x",
    }
    with urllib.request.urlopen(
        urllib.request.Request(server + path, content, head, method="PUT"), timeout=20
    ) as answer:
        assert answer.status == 200
