"""Notices that nodes will be taken away, asked for now and then by all ranks together, since asking is a barrier."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline import ranks

LOOK_S = 5.0
"""How often a cluster is asked; it gives minutes of notice, and looks for them itself as often."""


class Notices:
    """`leaving` names the nodes of this group that will be taken away; all ranks call it at the same meta-steps."""

    def __init__(self, leaving: Callable[[], frozenset[str]], *, every_s: float = LOOK_S):
        self._leaving, self._every_s = leaving, every_s
        self._known: frozenset[str] = frozenset()
        self._next_s = 0.0

    def is_due(self) -> bool:
        """Whether it is time to ask: rank 0's clock says so, and the loop's gather tells the others."""
        return ranks.rank() == 0 and time.monotonic() >= self._next_s

    def came(self) -> frozenset[str]:
        """Nodes that will be taken away and were not named before."""
        leaving = self._leaving()
        new, self._known = leaving - self._known, self._known | leaving
        self._next_s = time.monotonic() + self._every_s
        return new
