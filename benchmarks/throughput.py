"""Claim: a meta-step of ours takes less time than the fastest plain loop over tasks, than TorchOpt and than higher.

Second-order MAML, 5-way: conv4-64 on 28 × 28 pixels, resnet12 on 32 × 32; 1-way segmentation by a U-Net on 64 × 64. All
contenders have the same weights, the same episodes in memory, all threads of one process and the same outer optimizer. They
must agree on the meta-gradient in float64 before anything is timed; then they take turns, so that a disturbance of the
machine hits all of them alike.
TorchOpt and higher take part where they are installed (extra `bench`).

With `--loading` the episodes of the first setting come from raw tars while it trains: ours through the project's loader, the
faster of the plain loops through torch's DataLoader, which reads the same draws from the same tars in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from pipeline import prepare
from pipeline.data.loader import Loader, Reader
from pipeline.data.sampler import Sampler
from pipeline.data.shapes import Shape
from pipeline.data.shards import Shards
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
LOADED_STEPS = 12
"""Meta-steps of a turn in which episodes are loaded, so that what was read ahead before it weighs little."""
PREFETCHED = 2
"""Meta-batches that either loader reads ahead."""


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


SETTINGS = (
    Setting("Omniglot MAML: stride, 1 query, meta-batch 32", "stride", 1, 32, 0.4),
    Setting("max-pool, 15 queries, meta-batch 4", "max_pool", 15, 4, 0.01),
    Setting("resnet12 on 32 × 32, 1 query, meta-batch 4", "resnet12", 1, 4, 0.01),
    Setting("segmentation, U-Net-16 on 64 × 64, 5 queries, meta-batch 4", "unet", 5, 4, 0.1, width=16, steps=0),
)
DEPTH = 3
"""Halvings of the U-Net."""
MATRIX = tuple(
    # Without steps nothing is compiled: twelve compilations take longer than all the rest.
    Setting(f"{model}, {shots} shot, {inner} inner steps", model, shots, batch, 0.01, shots, inner, width, steps=0)
    for model, batch, width in (("stride", 16, 64), ("max_pool", 4, 64), ("resnet12", 2, 16))
    for shots in (1, 5)
    for inner in (1, 5)
)


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


def timed(contender: Contender, episodes: Sequence[Episode], outer: torch.optim.Optimizer | None = None) -> float:
    """Seconds of one meta-step, the outer update included if there is one."""
    began = time.perf_counter()
    for parameter in contender.parameters:
        parameter.grad = None
    contender.backward(episodes)
    if outer is not None:
        outer.step()
    return time.perf_counter() - began


def check(setting: Setting, *, libraries: bool) -> None:
    """Stop unless all contenders compute the same meta-gradient in float64."""
    episodes, gradients = episodes_of(setting, torch.float64), []
    for contender in contenders(setting, torch.float64, libraries=libraries):
        timed(contender, episodes)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in contender.parameters]))
        error = ((gradients[-1] - gradients[0]).norm() / gradients[0].norm()).item()
        assert error < 1e-8, f"the meta-gradient of {contender.name} differs from ours by {error:.1e}"


def run(setting: Setting, repeats: int, *, libraries: bool = True) -> None:
    """Check, time in turns, print the table; the first turn warms up and does not count."""
    check(setting, libraries=libraries)
    episodes, rivals = episodes_of(setting, torch.float32), contenders(setting, torch.float32, libraries=libraries)
    outers = [torch.optim.Adam(rival.parameters, lr=1e-3) for rival in rivals]
    seconds: list[list[float]] = [[] for _ in rivals]
    for turn in range(repeats + 1):
        for place in range(len(rivals)):
            at = (turn + place) % len(rivals)
            seconds[at].append(timed(rivals[at], episodes, outers[at]))
    tell(setting, setting.name, [rival.name for rival in rivals], seconds)


def tell(setting: Setting, title: str, names: Sequence[str], seconds: Sequence[Sequence[float]]) -> None:
    """The table of seconds per meta-step, by contender and turn; the first turn does not count, the first contender is ours."""
    print(f"\n{title}; {torch.get_num_threads()} threads, {len(seconds[0]) - 1} repeats")
    print(f"{'':40}{'meta-steps/s':>14}{'episodes/s':>12}{'ours is':>12}   (middle half of the pairs)")
    for name, column in zip(names, seconds, strict=True):
        median = statistics.median(column[1:])
        ratios = [theirs / own for theirs, own in zip(column[1:], seconds[0][1:], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rates = f"{1 / median:14.2f}{setting.batch / median:12.1f}"
        print(f"{name:40}{rates}{middle:10.2f} ×   ({low:.2f} – {high:.2f})", flush=True)


class Stored(NamedTuple):
    """Where the episodes of a setting lie."""

    sampler: Sampler
    reader: Reader
    batch: int


class MetaBatches(Dataset):
    """Whole meta-batches for torch's DataLoader, the first of them that of meta-step `first`."""

    def __init__(self, stored: Stored, first: int):
        self.stored, self.first = stored, first

    def __len__(self) -> int:
        return LOADED_STEPS

    def __getitem__(self, step: int) -> list[Episode]:
        sampler, reader, batch = self.stored
        return [reader.episode(sampler.draw(self.first + step, number)) for number in range(batch)]


def with_loader(stored: Stored, first: int) -> Iterator[list[Episode]]:
    """Meta-batches as `metashard train` gets them."""
    sampler, reader, batch = stored
    last = first + LOADED_STEPS
    with Loader(sampler, reader, batch=batch, rank=0, world=1, depth=PREFETCHED) as loader:
        for step in range(first, last):
            yield loader.share(step, last=last).episodes


def with_dataloader(stored: Stored, first: int) -> Iterable[list[Episode]]:
    """The same meta-batches as others get them: one more process reads ahead."""
    options = {"batch_size": None, "num_workers": 1, "prefetch_factor": PREFETCHED, "collate_fn": list}
    return DataLoader(MetaBatches(stored, first), **options)


def loaded_step(contender: Contender, batches: Iterable[list[Episode]], outer: torch.optim.Optimizer) -> float:
    """Seconds per meta-step with loading, from when the first meta-batch is there, as in the middle of a run."""
    began, steps = 0.0, 0
    for episodes in batches:
        began = began or time.perf_counter()
        timed(contender, episodes, outer)
        steps += 1
    return (time.perf_counter() - began) / steps


def run_loaded(setting: Setting, repeats: int, *, classes: int, each: int) -> None:
    """Ours and the faster plain loop, each with episodes from memory and from tars, in turns."""
    from loading import glyph_folder

    base, episodes = ours(setting, torch.float32), episodes_of(setting, torch.float32)
    loops = [plain(setting, base, layout) for layout in (torch.contiguous_format, torch.channels_last)]
    loop = min(loops, key=lambda loop: min(timed(loop, episodes) for _ in range(3)))
    outers = {rival.name: torch.optim.Adam(rival.parameters, lr=1e-3) for rival in (base, loop)}
    with tempfile.TemporaryDirectory(prefix="metashard-") as folder:
        source = glyph_folder(Path(folder) / "images", classes, each)
        index = prepare.pack(str(source), Path(folder) / "data", layout="folder", size=setting.image[1], rule="train=1")
        shape = Shape(WAYS, setting.shots, setting.queries)
        stored = Stored(
            Sampler(index, "train", shape, seed=0, turns=False), Reader(Shards(index), False, None), setting.batch
        )
        feeds = (("loader", base, with_loader), ("DataLoader", loop, with_dataloader))
        first = [next(iter(feed(stored, 0)))[0].query.inputs for _, _, feed in feeds]
        assert torch.equal(*first), "the loaders do not give the same episodes"
        rows = [(f"{rival.name}, {name}", rival, feed) for name, rival, feed in feeds]
        rows += [(f"{rival.name}, memory", rival, lambda *_: [episodes] * LOADED_STEPS) for _, rival, _ in feeds]
        seconds: list[list[float]] = [[] for _ in rows]
        for turn in range(repeats + 1):
            for place in range(len(rows)):
                at = (turn + place) % len(rows)
                _, rival, feed = rows[at]
                seconds[at].append(loaded_step(rival, feed(stored, turn * LOADED_STEPS), outers[rival.name]))
    tell(setting, f"{setting.name}, loading from raw tars", [name for name, *_ in rows], seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--matrix", action="store_true", help="12 cases, model × shots × inner steps, against the plain loop"
    )
    parser.add_argument("--model", help="only the settings of this model, as unet")
    parser.add_argument("--loading", action="store_true", help="the first setting with episodes from tars")
    parser.add_argument("--quick", action="store_true", help="tiny sizes on one thread, to see that it works")
    arguments = parser.parse_args()
    if arguments.loading and not arguments.quick:
        run_loaded(SETTINGS[0], arguments.repeats, classes=200, each=20)
        return
    if not arguments.quick:
        for setting in MATRIX if arguments.matrix else SETTINGS:
            if arguments.model in (None, setting.model):
                run(setting, arguments.repeats, libraries=not arguments.matrix)
        return
    torch.set_num_threads(1)
    for setting in SETTINGS[:1] if arguments.loading else SETTINGS:
        tiny = setting._replace(name=f"{setting.name}, made tiny", width=4, queries=1, batch=2, steps=0)
        if arguments.loading:
            run_loaded(tiny, repeats=2, classes=6, each=4)
        else:
            run(tiny, repeats=2)


if __name__ == "__main__":
    main()
