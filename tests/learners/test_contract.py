"""What holds for every learner, whatever its mathematics: it learns, and saving loses nothing."""

import torch
from safetensors.torch import load, save
from small import episode, make

from pipeline.learners.learner import Mode


def contiguous(learner: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in learner.state_dict().items()}


def test_the_loss_falls(learner):
    """Six steps of Adam on the same episode."""
    one = episode(1)
    optimizer = torch.optim.Adam((p for p in learner.parameters() if p.requires_grad), lr=5e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = learner.outcome(one).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]


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
