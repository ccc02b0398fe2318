"""Who takes part in `throughput.py`: our engine, the plain loop in PyTorch's own functions, TorchOpt and higher, all with the
same weights on the same episodes.

TorchOpt and higher take part where they are installed (extra `bench`).
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.engine import Engine, measure
from pipeline.episode import Batch, Episode
from pipeline.learners.estimators import Unrolled
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.initials import Learned
from pipeline.learners.rules import Sgd
from pipeline.loop import meta_step
from pipeline.models.conv4 import BLOCKS, Conv4
from pipeline.models.network import Network
from pipeline.models.norm import EPS
from pipeline.models.resnet12 import SLOPE, ResNet12
from pipeline.models.unet import Unet
from pipeline.tasks.classification import Classification
from pipeline.tasks.segmentation import Segmentation

WAYS = 5
DEPTH = 3
"""Halvings of the U-Net."""


class Setting(NamedTuple):
    """A model and the episodes of a meta-step; `queries` per class. A run has `steps` meta-steps: enough to compile for."""

    name: str
    model: Literal["stride", "max_pool", "resnet12", "unet"]
    queries: int
    batch: int
    lr: float
    shots: int = 1
    inner: int = 1
    width: int = 64
    steps: int = 60_000

    @property
    def image(self) -> tuple[int, int]:
        """Channels and side in pixels."""
        match self.model:
            case "resnet12":
                return (3, 32)
            case "unet":
                return (1, 64)
            case _:
                return (1, 28)


class Contender(NamedTuple):
    """`backward(episodes)` adds the gradient of the mean query loss to `parameters`."""

    name: str
    names: list[str]
    parameters: list[nn.Parameter]
    backward: Callable[[Sequence[Episode]], None]


def forward(setting: Setting, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The same network in PyTorch's own functions: scale and shift inside the norm's kernel, no modules to call."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], True, eps=EPS)

    if setting.model == "unet":
        return forward_unet(weights, x, norm)
    stride = 2 if setting.model == "stride" else 1
    for block in range(BLOCKS):
        if setting.model == "resnet12":
            at = f"encoder.blocks.{block}"
            beside = norm(f"{at}.shortcut_norm", F.conv2d(x, weights[f"{at}.shortcut.weight"]))
            for layer in range(3):
                x = norm(f"{at}.norms.{layer}", F.conv2d(x, weights[f"{at}.convs.{layer}.weight"], padding=1))
                x = F.leaky_relu(x if layer < 2 else x + beside, SLOPE)
            x = F.max_pool2d(x, 2)
        else:
            x = F.conv2d(x, weights[f"encoder.convs.{block}.weight"], stride=stride, padding=1)
            x = norm(f"encoder.norms.{block}", x)
            x = F.relu(x if stride == 2 else F.max_pool2d(x, 2))
    x = x.flatten(1) if setting.model == "max_pool" else x.mean((2, 3))
    return F.linear(x, weights["head.weight"], weights["head.bias"])


def forward_unet(weights: dict[str, Tensor], x: Tensor, norm: Callable[[str, Tensor], Tensor]) -> Tensor:
    """The U-Net, likewise: logits of every pixel."""

    def block(at: str, x: Tensor) -> Tensor:
        at = f"encoder.{at}"
        return F.relu(norm(f"{at}.norm", F.conv2d(x, weights[f"{at}.conv.weight"], padding=1)))

    x, seen = block("first", x), []
    for level in range(DEPTH):
        seen.append(x)
        x = block(f"down.{level}", F.max_pool2d(x, 2))
    x = block("bottom.0", x)
    for level, beside in enumerate(reversed(seen)):
        x = block(f"up.blocks.{level}", torch.cat([F.interpolate(x, scale_factor=2), beside], 1))
    return F.conv2d(x, weights["head.weight"], weights["head.bias"])


class Native(nn.Module):
    """`forward` as the module that TorchOpt and higher want, with the weights of `base` in a memory layout."""

    def __init__(self, setting: Setting, base: Contender, layout: torch.memory_format):
        super().__init__()
        self.setting, self.names = setting, base.names
        for name, weight in zip(self.names, base.parameters, strict=True):
            self.register_parameter(name.replace(".", "/"), nn.Parameter(weight.detach().clone()))
        self.to(memory_format=layout)

    def forward(self, x: Tensor) -> Tensor:
        return forward(self.setting, {name: getattr(self, name.replace(".", "/")) for name in self.names}, x)


def episodes_of(setting: Setting, dtype: torch.dtype) -> list[Episode]:
    """A meta-batch of noisy images whose brightness tells the class a little."""
    generator = torch.Generator().manual_seed(0)
    if setting.model == "unet":
        return [pixel_episode(setting, dtype, generator) for _ in range(setting.batch)]

    def batch(each: int) -> Batch:
        targets = torch.arange(WAYS).repeat_interleave(each)
        channels, side = setting.image
        images = torch.rand(len(targets), channels, side, side, generator=generator, dtype=torch.float64)
        return Batch((images + targets[:, None, None, None] / WAYS).to(dtype), targets)

    return [Episode(batch(setting.shots), batch(setting.queries), WAYS) for _ in range(setting.batch)]


def pixel_episode(setting: Setting, dtype: torch.dtype, generator: torch.Generator) -> Episode:
    """Noisy images with a brighter square, the class, each."""
    channels, side = setting.image

    def batch(samples: int) -> Batch:
        targets = torch.zeros(samples, side, side, dtype=torch.int64)
        for mask in targets:
            top, left = torch.randint(0, side // 2, (2,), generator=generator).tolist()
            mask[top : top + side // 3, left : left + side // 3] = 1
        images = torch.rand(samples, channels, side, side, generator=generator, dtype=torch.float64)
        return Batch((images + targets[:, None] / 2).to(dtype), targets)

    return Episode(batch(setting.shots), batch(setting.queries), 1)


def ours(setting: Setting, dtype: torch.dtype) -> Contender:
    """The path of `metashard train`, with the plan that its engine chooses by measuring."""
    torch.manual_seed(0)
    learner = maml(setting).to(dtype)
    steps = setting.steps if dtype is torch.float32 else 0
    plan = measure(learner, episodes_of(setting, dtype), steps=steps)[0].plan
    engine = Engine(learner, plan)

    def backward(episodes: Sequence[Episode]) -> None:
        meta_step(engine, engine, episodes, scale=1 / len(episodes))

    model = learner.model
    names = [name for name, _ in model.named_parameters()]
    return Contender(f"metashard ({plan})", names, list(model.parameters()), backward)


def maml(setting: Setting, *, recompute: bool = False) -> GradientLearner:
    """Second-order MAML on our network of a setting, always with the same initial weights."""
    torch.manual_seed(0)
    encoder = encoder_of(setting)
    task = Segmentation() if setting.model == "unet" else Classification()
    model = Network(encoder, task.head(encoder.features, 1 if setting.model == "unet" else WAYS))
    return GradientLearner(
        model,
        task,
        initial=Learned(model, ".*"),
        rule=Sgd(setting.lr),
        estimate=Unrolled(setting.inner, recompute=recompute),
        steps=setting.inner,
        test_steps=setting.inner,
    )


def encoder_of(setting: Setting) -> Conv4 | ResNet12 | Unet:
    """Our network of a setting."""
    channels, size = setting.image
    if setting.model == "unet":
        return Unet(channels=channels, width=setting.width, depth=DEPTH, downsample="max_pool")
    if setting.model == "resnet12":
        return ResNet12(channels=channels, width=setting.width)
    features = "mean" if setting.model == "stride" else "flatten"
    return Conv4(channels=channels, width=setting.width, size=size, downsample=setting.model, features=features)


def plain(setting: Setting, base: Contender, layout: torch.memory_format) -> Contender:
    """What learn2learn does: clone the weights, differentiate through the inner step, one backward a task."""
    parameters = list(Native(setting, base, layout).parameters())

    def backward(episodes: Sequence[Episode]) -> None:
        for support, query, *_ in episodes:
            fast = {name: weight.clone() for name, weight in zip(base.names, parameters, strict=True)}
            for _ in range(setting.inner):
                loss = F.cross_entropy(forward(setting, fast, support.inputs), support.targets)
                gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
                moved = zip(fast.items(), gradients, strict=True)
                fast = {name: weight - setting.lr * gradient for (name, weight), gradient in moved}
            loss = F.cross_entropy(forward(setting, fast, query.inputs), query.targets)
            (loss / len(episodes)).backward()

    order = "last" if layout is torch.channels_last else "first"
    return Contender(f"plain loop, channels {order}", base.names, parameters, backward)


def with_torchopt(setting: Setting, base: Contender, layout: torch.memory_format) -> Contender:
    """TorchOpt's MetaSGD, as in its MAML example."""
    import torchopt

    model = Native(setting, base, layout)
    inner = torchopt.MetaSGD(model, lr=setting.lr)
    parameters = list(model.parameters())
    start, state = (torchopt.extract_state_dict(thing, by="reference") for thing in (model, inner))

    def backward(episodes: Sequence[Episode]) -> None:
        for support, query, *_ in episodes:
            for _ in range(setting.inner):
                inner.step(F.cross_entropy(model(support.inputs), support.targets))
            (F.cross_entropy(model(query.inputs), query.targets) / len(episodes)).backward()
            torchopt.recover_state_dict(model, start)
            torchopt.recover_state_dict(inner, state)

    return Contender(f"torchopt {torchopt.__version__}", base.names, parameters, backward)


def with_higher(setting: Setting, base: Contender, layout: torch.memory_format) -> Contender:
    """higher's innerloop_ctx, as in its MAML example."""
    import higher

    model = Native(setting, base, layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.lr)

    def backward(episodes: Sequence[Episode]) -> None:
        for support, query, *_ in episodes:
            with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (fast, inner):
                for _ in range(setting.inner):
                    inner.step(F.cross_entropy(fast(support.inputs), support.targets))
                (F.cross_entropy(fast(query.inputs), query.targets) / len(episodes)).backward()

    return Contender("higher", base.names, list(model.parameters()), backward)


def timed(contender: Contender, episodes: Sequence[Episode], outer: torch.optim.Optimizer | None = None) -> float:
    """Seconds of one meta-step, the outer update included if there is one."""
    began = time.perf_counter()
    for parameter in contender.parameters:
        parameter.grad = None
    contender.backward(episodes)
    if outer is not None:
        outer.step()
    return time.perf_counter() - began


def contenders(setting: Setting, dtype: torch.dtype, *, libraries: bool) -> list[Contender]:
    """Ours first, then the others, all with the same weights."""
    base, episodes = ours(setting, dtype), episodes_of(setting, dtype)
    loops = {layout: plain(setting, base, layout) for layout in (torch.contiguous_format, torch.channels_last)}
    if not libraries:
        return [base, *loops.values()]
    # The libraries get the layout in which the plain loop is faster here.
    seconds = {layout: min(timed(loop, episodes) for _ in range(3)) for layout, loop in loops.items()}
    best = min(loops, key=lambda layout: seconds[layout])
    known = {"torchopt": with_torchopt, "higher": with_higher}
    found = [make(setting, base, best) for name, make in known.items() if importlib.util.find_spec(name)]
    return [base, *loops.values(), *found]
