"""What holds for every learner, whatever its mathematics: it learns, order does not matter, saving loses nothing."""

import torch
from safetensors.torch import load, save
from small import episode, gradient, make, relative

from pipeline.engine import Engine, Plan
from pipeline.learners.learner import Mode


def contiguous(learner: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in learner.state_dict().items()}


def test_the_loss_falls(learner):
    """Six steps of Adam on the same two episodes."""
    engine, episodes = Engine(learner, Plan("vmap", 2)), [episode(n) for n in range(2)]
    optimizer = torch.optim.Adam((p for p in learner.parameters() if p.requires_grad), lr=5e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = engine(episodes).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]


def test_the_order_of_episodes_does_not_matter(learner):
    engine, episodes = Engine(learner, Plan("loop", 3)), [episode(n) for n in range(3)]
    found = []
    for ordered in (episodes, episodes[::-1]):
        learner.zero_grad()
        engine(ordered).loss.backward()
        found.append(gradient(learner))
    assert relative(found[0], found[1]) < 1e-12


def test_what_is_saved_and_loaded_predicts_the_same(learner, request):
    one = episode(1)
    with torch.no_grad():
        for value in learner.parameters():
            value.add_(0.01 * torch.randn(value.shape, dtype=value.dtype))
    statistics = learner.outcome(one).statistics
    if statistics:
        learner.absorb(statistics)
    other = make(request.node.callspec.params["learner"])
    other.load_state_dict(load(save(contiguous(learner))))
    for mode in Mode:
        first, again = (made.adapt(one.support, one.ways, mode=mode)(one.query.inputs) for made in (learner, other))
        assert torch.equal(first, again)
