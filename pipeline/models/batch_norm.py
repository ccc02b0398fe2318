"""Batch normalisation that is cheap to differentiate twice."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

EPS = 1e-5

Slopes = tuple[Tensor, Tensor, Tensor]
"""Gradients at the activations (samples, channels, …), at the scale and at the shift (channels,)."""


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.batch_norm` by the batch's own statistics (Ioffe and Szegedy 2015), with its derivatives written out.

    PyTorch composes the second derivative of some forty operations; here it is one more backward of the kernel, one sum over
    the activations and four passes: a third to a sixth of the time. It cannot be used inside `torch.func`: a
    `torch.autograd.Function` that can be takes longer to call than this saves.
    """
    return _Forward.apply(x, weight, bias)  # pyright: ignore[reportReturnType]


def _backward(slope: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor) -> Slopes:
    every = [True, True, True]
    return torch.ops.aten.native_batch_norm_backward(slope, x, weight, None, None, mean, inverse, True, EPS, every)


@final
class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, mean, inverse = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, EPS)
        ctx.save_for_backward(x, weight, mean, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        return _Backward.apply(slope, *ctx.saved_tensors)


@final
class _Backward(torch.autograd.Function):
    """With x̂ the normalised activations, r one over their deviation, s₁ and s₂ the means of g and of g x̂ per channel, the
    gradient is w r (g − s₁ − x̂ s₂), a function of g, of w, and of x through r, x̂ and s₂.
    """

    @staticmethod
    def forward(ctx: Any, slope: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor) -> Slopes:
        found = _backward(slope, x, weight, mean, inverse)
        ctx.save_for_backward(slope, x, weight, mean, inverse, *found[1:])
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, at_x: Tensor, at_weight: Tensor, at_bias: Tensor) -> Any:
        slope, x, weight, mean, inverse, to_weight, to_bias = ctx.saved_tensors
        count, shape = x.numel() // x.shape[1], (1, -1) + (1,) * (x.ndim - 2)

        def by_channel(values: Tensor) -> Tensor:
            return values.reshape(shape)

        # The map from g to the gradient at x is symmetric, so its transpose is the kernel once more.
        to_slope, times, total = _backward(at_x, x, weight, mean, inverse)
        u_xhat, u = times / count, total / count
        g_xhat, g = to_weight / count, to_bias / count
        u_g = (at_x * slope).sum([axis for axis in range(x.ndim) if axis != 1]) / count
        common = u_g - u * g - u_xhat * g_xhat
        by_scale = at_weight * inverse
        to_slope.addcmul_(x, by_channel(by_scale)).add_(by_channel(at_bias - by_scale * mean))
        # Sums of u, g and x with a factor per channel; x̂ = (x − mean) r is told by x.
        factor = weight * inverse * inverse
        of_u, of_g = -factor * g_xhat, by_scale - factor * u_xhat
        of_xhat = factor * (2 * g_xhat * u_xhat - common) - by_scale * g_xhat
        constant = factor * (g_xhat * u + u_xhat * g) - by_scale * g - of_xhat * inverse * mean
        to_x = torch.addcmul(by_channel(constant), x, by_channel(of_xhat * inverse))
        to_x.addcmul_(at_x, by_channel(of_u)).addcmul_(slope, by_channel(of_g))
        return to_slope, to_x, count * inverse * common, None, None
