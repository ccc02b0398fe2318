"""Within-class covariance normalisation: against its definition, and on features whose classes differ along little."""

import pytest
import torch
from small import WAYS, episode, make
from torch import nn
from torch.nn import functional as F

from pipeline.episode import Batch, Episode
from pipeline.errors import InputError
from pipeline.learners.learner import Mode
from pipeline.learners.metric import CosineLearner
from pipeline.learners.wccn import WITHIN, WccnLearner
from pipeline.models.network import Network
from pipeline.models.norm import Recorded, by_batch
from pipeline.tasks.classification import Classification


class Given(nn.Module):
    """Inputs are features already."""

    def forward(self, inputs: torch.Tensor, normalise) -> torch.Tensor:
        return inputs


def on_features(dim: int, *, scale: float = 10.0, shrink: float = 0.1) -> WccnLearner:
    return WccnLearner(
        Network(Given(), nn.Identity()), Classification(), features=dim, scale=scale, shrink=shrink
    ).double()


def test_what_is_kept_is_the_covariance_within_classes_of_support_and_query():
    learner, one = make("wccn"), episode(1)
    features = learner.model(torch.cat([one.support.inputs, one.query.inputs]), Recorded())
    labels = torch.cat([one.support.targets, one.query.targets])
    seen = F.normalize(features, dim=1)
    scatter = torch.zeros(6, 6, dtype=torch.float64)
    for label in range(WAYS):
        own = seen[labels == label]
        for x in own:
            scatter += torch.outer(x - own.mean(0), x - own.mean(0))
    mean, within = learner.outcome(one).statistics[WITHIN]
    assert torch.allclose(mean, seen.mean(0), atol=1e-10)
    assert torch.allclose(within.reshape(6, 6), scatter / (len(seen) - WAYS), atol=1e-10)


def test_what_is_kept_is_the_mean_over_meta_steps():
    learner, found = make("wccn"), []
    for number in range(3):
        statistics = learner.outcome(episode(number)).statistics
        found.append(statistics[WITHIN])
        learner.absorb(statistics)
    for kept, parts in zip((learner.mean, learner.within.flatten()), zip(*found, strict=True), strict=True):
        assert torch.allclose(kept, torch.stack(parts).mean(0), atol=1e-12)


def test_a_score_is_a_cosine_in_the_metric_of_the_inverse():
    learner, one = make("wccn"), episode(2)
    learner.absorb(learner.outcome(episode(1)).statistics)
    within = learner.within + 0.3 * learner.within.diagonal().mean() * torch.eye(6)
    metric = torch.linalg.inv(within)

    def likeness(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ metric @ y) / ((x @ metric @ x) * (y @ metric @ y)).sqrt()

    first = Episode(*(Batch(*(part[:: len(part) // WAYS] for part in batch)) for batch in one[:2]), WAYS, one.key)
    features = learner.model(torch.cat([first.support.inputs, first.query.inputs]), by_batch)
    known, asked = (F.normalize(features, dim=1) - learner.mean).split(WAYS)
    expected = torch.stack([torch.stack([5.0 * likeness(x, y) for y in known]) for x in asked])
    predict = learner.adapt(first.support, WAYS, mode=Mode.TRANSDUCTIVE)
    assert torch.allclose(predict(first.query.inputs), expected, atol=1e-8)


def test_before_the_first_meta_step_it_is_the_cosine():
    learner, one = make("wccn"), episode(3)
    plain = CosineLearner(learner.model, Classification(), scale=5.0, offset=0.0).double()
    for mode in Mode:
        mine, theirs = (each.adapt(one.support, WAYS, mode=mode)(one.query.inputs) for each in (learner, plain))
        assert torch.allclose(mine, theirs, atol=1e-10)


def pictures(number: int, *, ways: int = 8, each: int = 4, dim: int = 12) -> Episode:
    """Features of which the first four say the class, and the others, three times as large, differ from picture to picture."""
    generator = torch.Generator().manual_seed(number)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    classes = torch.cat([noise(ways, 4), torch.zeros(ways, dim - 4)], 1)

    def batch(size: int) -> Batch:
        labels = torch.arange(ways).repeat_interleave(size)
        nuisance = torch.cat([0.1 * noise(len(labels), 4), 3 * noise(len(labels), dim - 4)], 1)
        return Batch(classes[labels] + nuisance, labels)

    return Episode(batch(1), batch(each), ways, torch.tensor(number))


def test_what_changes_from_picture_to_picture_is_learned_to_count_less():
    learner = on_features(12)

    def accuracy() -> float:
        found = []
        for number in range(100, 140):
            support, query, ways, _ = pictures(number)
            predictions = learner.adapt(support, ways, mode=Mode.INDUCTIVE)(query.inputs)
            found.append((predictions.argmax(1) == query.targets).double().mean().item())
        return sum(found) / len(found)

    before = accuracy()
    for number in range(20):
        learner.absorb(learner.outcome(pictures(number)).statistics)
    assert before < 0.25 and accuracy() > 0.45


def test_gradients_through_part_of_a_support_are_refused():
    with pytest.raises(InputError, match=r"learner.backward = 2: learner.kind = wccn keeps .*; set it to 0"):
        make("wccn").spare(2)
