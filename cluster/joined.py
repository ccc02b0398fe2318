"""Waits until as many nodes have joined the Ray cluster of RAY_ADDRESS: `python -m cluster.joined NODES SECONDS`."""

from __future__ import annotations

import logging
import sys
import time


def wait(nodes: int, within_s: float) -> str:
    """Empty once they are there, else which are."""
    import ray

    deadline = time.monotonic() + within_s
    ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    try:
        while len(there := [node for node in ray.nodes() if node["Alive"]]) < nodes:
            if time.monotonic() > deadline:
                hosts = ", ".join(sorted(node["NodeManagerHostname"] for node in there))
                return f"{len(there)} of {nodes} nodes have joined within {within_s:.0f} s: {hosts}"
            time.sleep(0.5)
    finally:
        ray.shutdown()
    return ""


def main() -> int:
    try:
        missing = wait(int(sys.argv[1]), float(sys.argv[2]))
    except ConnectionError as error:
        missing = f"no Ray cluster answers: {error}"
    if missing:
        print(f"metashard: {missing}; raise start_s, or see why Ray did not start on the others", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
