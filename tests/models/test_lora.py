"""Low-rank factors: what they start as, what they add, and that they alone adapt or train where asked."""

import torch
from small import episode, make, vit
from torch.func import functional_call
from torch.nn import functional as F

from pipeline.models.lora import LowRank, linear


def layer(*, rank=2) -> LowRank:
    return LowRank(5, 3, rank=rank, alpha=3.0).double()


def inputs() -> torch.Tensor:
    return torch.randn(4, 2, 5, dtype=torch.float64)


def test_at_first_it_is_the_plain_layer():
    made, x = layer(), inputs()
    assert torch.equal(made(x), F.linear(x, made.weight, made.bias))
    assert (made.lora_a != 0).all() and (made.lora_b == 0).all()


def test_its_weight_is_w_plus_alpha_over_rank_b_a():
    made, x = layer(), inputs()
    torch.nn.init.normal_(made.lora_b)
    merged = made.weight + 3.0 / 2 * made.lora_b @ made.lora_a
    assert torch.allclose(made.merged(), merged) and torch.allclose(made(x), F.linear(x, merged, made.bias))
    assert (made(x) - F.linear(x, made.weight, made.bias)).abs().max() > 0.1


def test_without_a_rank_it_is_a_plain_layer():
    assert type(linear(5, 3, rank=0, alpha=1.0)) is torch.nn.Linear


def test_a_transformer_with_merged_weights_computes_the_same():
    model = vit(rank=2)
    plain, images = vit(), torch.rand(2, 1, 16, 16)
    weights = {name: value for name, value in model.named_parameters() if "lora_" not in name}
    merged = {f"{n}.weight": m.merged() for n, m in model.named_modules() if isinstance(m, LowRank)}
    assert len(merged) == 4
    expected = functional_call(plain, {**weights, **merged}, (images,))
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)


def test_only_the_factors_adapt():
    learner = make("maml-lora")
    factors = {name for name, _ in learner.model.named_parameters() if name.endswith(("lora_a", "lora_b"))}
    assert learner.initial.names == factors and len(factors) == 8


def test_what_is_frozen_has_no_gradient_and_all_else_has():
    """Law 5; only factors and head are left to be trained."""
    learner = make("maml-lora-frozen")
    learner.outcome(episode(1)).loss.backward()
    trained = {name for name, value in learner.model.named_parameters() if value.requires_grad}
    assert trained == learner.initial.names | {"head.weight", "head.bias"}
    assert {name for name, value in learner.model.named_parameters() if value.grad is not None} == trained


def test_freezing_does_not_change_what_is_learned_in_an_episode():
    free, frozen = make("maml-lora"), make("maml-lora-frozen")
    losses = [learner.outcome(episode(1)).loss for learner in (free, frozen)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == losses[1].item()
    for name in free.initial.names:
        expected = free.model.get_parameter(name).grad
        torch.testing.assert_close(frozen.model.get_parameter(name).grad, expected, rtol=1e-10, atol=1e-14)
