"""Models of other libraries: the same function, no state of their own, statistics from where ours have them."""

import pytest
import torch
from small import episode, gradient, gradient_learner, relative
from torch import nn

from pipeline.engine import Engine, Plan
from pipeline.errors import InputError
from pipeline.learners.learner import Mode
from pipeline.models.foreign import Foreign
from pipeline.models.norm import Given, Norm, Recorded


class Residual(nn.Module):
    """A block as others write it: batch norm that is called with activations alone, operations in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)
        self.part = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.act = nn.ReLU(inplace=True)
        for layer in (self.bn1, self.part[1]):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)

    def forward(self, x):
        x = self.act(self.bn1(self.conv1(x)))
        y = self.part(x)
        y += x
        return self.act(y).mean((2, 3))


def foreign(model: nn.Module | None = None, *, steps: int = 0) -> Foreign:
    return Foreign(model or Residual(), channels=1, size=16)


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16)


def test_it_computes_what_it_did_and_keeps_its_names():
    model, x = Residual(), images()
    expected, names = model(x), [name for name, _ in model.named_parameters()]
    made = foreign(model)
    torch.testing.assert_close(made(x), expected)
    assert made.features == 4 and list(made.state_dict()) == [f"model.{name}" for name in names]


def test_it_is_told_how_to_normalise():
    """Law 8: with given statistics a sample does not depend on its company, by the batch it does."""
    made, x, recorded = foreign(), images(), Recorded()
    made(images(), recorded)
    assert set(recorded.statistics) == {m.name for m in made.modules() if isinstance(m, Norm)} == {"bn1", "part_1"}
    given = Given(recorded.statistics)
    torch.testing.assert_close(made(x, given)[:1], made(x[:1], given))
    assert (made(x)[:1] - made(x[:3])[:1]).abs().max() > 1e-3


def test_its_meta_gradient_is_the_same_under_vmap_and_nothing_stays_behind():
    learner, episodes, found = gradient_learner(encoder=foreign), [episode(n) for n in range(3)], []
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    for plan in (Plan("loop", 1), Plan("vmap", 3)):
        learner.zero_grad()
        Engine(learner, plan)(episodes).loss.backward()
        found.append(gradient(learner))
    assert relative(found[1], found[0]) < 1e-10
    learner.adapt(episodes[0].support, 3, mode=Mode.INDUCTIVE)(episodes[0].query.inputs)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


class Kept(nn.BatchNorm2d):
    """Perhaps with a function of its own: it is not exchanged."""


REFUSED = {
    "1 is a Kept, but no other layers": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), Kept(4)),
    "1 is a GroupNorm, but no other layers": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)),
    "the model is a GRU, but no other layers": lambda: nn.GRU(1, 1),
    "0 is dropout, which draws": lambda: nn.Sequential(nn.Dropout(0.1)),
    "the layer 1 normalises with eps = 0.001": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=1e-3)),
    "no vectors for images of 16 pixels": lambda: nn.Conv2d(1, 4, 3),
    "16 pixels: .*shapes cannot be multiplied": lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 2)),
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_would_break_a_law_is_refused(told):
    with pytest.raises(InputError, match=told):
        foreign(REFUSED[told]())
