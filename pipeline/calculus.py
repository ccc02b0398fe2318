"""Derivatives of functions, by `torch.func` or, where that is not needed, by plain autograd, which gives the same for less.

`torch.func` is what `vmap` and nested transforms want; it wraps every tensor, and what it calls must be made for it. Inside
neither, as in the loop over episodes, none of that is necessary. It cannot be seen from inside, so whoever knows what there
is around says so; who is not told assumes everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

A = TypeVar("A")
Around = Literal["vmap", "func", "nothing"]
"""What of `torch.func` may be around a computation: all of it, all but `vmap`, nothing."""

_around: ContextVar[Around] = ContextVar("around", default="vmap")


@contextmanager
def around(what: Around) -> Iterator[None]:
    """Say that there is no more than this around what is computed while in it."""
    token = _around.set(what)
    try:
        yield
    finally:
        _around.reset(token)


def is_alone() -> bool:
    """Whether one episode is computed at a time, without `vmap`."""
    return _around.get() != "vmap"


def is_plain() -> bool:
    """Whether no transform at all is around."""
    return _around.get() == "nothing"


def gradient(function: Callable[..., tuple[Tensor, A]], *at: Any) -> tuple[tuple, A]:
    """The gradients of the scalar `function(*at)[0]`, a tree for each argument, and what else the function gives.

    They are functions of whatever else has gone into it, unless gradients are off: then they are constants.
    """
    if not is_plain():
        return torch.func.grad(function, argnums=tuple(range(len(at))), has_aux=True)(*at)
    is_function = torch.is_grad_enabled()
    # A node of its own for each: what the function knows of the same tensor from elsewhere is no part of this gradient.
    own = tree_map(lambda v: v.view_as(v) if is_function and v.requires_grad else v.detach().requires_grad_(), at)
    leaves, structure = tree_flatten(own)
    with torch.enable_grad():
        value, others = function(*own)
        found = _back([value] if value.requires_grad else [], leaves, None, create_graph=is_function)
    if not is_function:
        others = tree_map(lambda other: other.detach() if isinstance(other, Tensor) else other, others)
    return tree_unflatten(found, structure), others


def pull(function: Callable[..., Any], *at: Any) -> Callable[..., tuple]:
    """What carries a gradient at the function's result back to its arguments, a tree for each; where gradients are off.

    With `retain_graph=False` it can be called once, and lets go of what it holds while it goes back.
    """
    if not is_plain():
        return torch.func.vjp(function, *at)[1]
    own = tree_map(lambda v: v.detach().requires_grad_(), at)
    leaves, structure = tree_flatten(own)
    with torch.enable_grad():
        # The values themselves are not needed, and may be as large as what led to them.
        edges = [get_gradient_edge(value) if value.requires_grad else None for value in tree_leaves(function(*own))]

    def back(slopes: Any, *, retain_graph: bool = True) -> tuple:
        arriving = [slope for edge, slope in zip(edges, tree_leaves(slopes), strict=True) if edge is not None]
        ends = [edge for edge in edges if edge is not None]
        found = _back(ends, leaves, arriving, retain_graph=retain_graph)
        return tree_unflatten(found, structure)

    return back


def _back(ends: Any, leaves: list[Tensor], slopes: list[Tensor] | None, **options: bool) -> Any:
    """The gradients at the leaves of these tensors or edges of a graph; zeros where there is none that depends on them."""
    if not ends:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(ends, leaves, slopes, materialize_grads=True, **options)
