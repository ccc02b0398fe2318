"""`cluster.supervise` without Ray nodes and with another program in metashard's place: `kept.py ATTEMPT PROGRAM`."""

import contextlib
import sys

from cluster import supervise


@contextlib.contextmanager
def no_nodes(spec, variables, logs):
    yield "127.0.0.1:1"


if __name__ == "__main__":
    supervise._nodes = no_nodes
    supervise.binary = lambda name: sys.argv[2]
    supervise.main()
