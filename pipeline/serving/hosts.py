"""What a server on this machine may be called in a browser, by which pages of other places are kept away."""

from __future__ import annotations

from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def name_of(host: str) -> str:
    """The host of a header `Host`, without its port; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
