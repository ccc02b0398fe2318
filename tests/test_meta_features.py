"""Meta-features: whose order does not matter, what each of them answers to."""

from __future__ import annotations

import pytest
import torch

from pipeline.episode import Batch
from pipeline.meta_features import embedding, grey, meta_features, separability

WAYS = 4


def support(shots: int = 3, *, seed: int = 0, channels: int = 1) -> Batch:
    """Noise about an image of each class."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.rand(WAYS, channels, 20, 20, generator=generator)
    targets = torch.arange(WAYS).repeat_interleave(shots)
    noise = 0.1 * torch.randn(len(targets), channels, 20, 20, generator=generator)
    return Batch((classes[targets] + noise).clamp(0, 1), targets)


def of(batch: Batch) -> dict[str, float]:
    return meta_features(batch, WAYS, size=20)


def test_neither_the_order_of_samples_nor_the_numbers_of_classes_matter():
    inputs, targets = support()
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))
    other = torch.tensor([2, 0, 3, 1])
    assert of(Batch(inputs[order], targets[order])) == pytest.approx(of(Batch(inputs, targets)))
    assert of(Batch(inputs, other[targets])) == pytest.approx(of(Batch(inputs, targets)))


def test_counts_are_told():
    found = of(support(3))
    assert (found["ways"], found["shots"], found["least_shots"], found["size"]) == (WAYS, 3, 3, 20)
    inputs, targets = support(3)
    fewer = of(Batch(inputs[1:], targets[1:]))
    assert fewer["least_shots"] == 2 and fewer["shots"] == pytest.approx(2.75)


def test_brightness_and_contrast_answer_to_what_they_are_called_after():
    inputs, targets = support()
    plain = of(Batch(inputs, targets))
    darker, flatter = of(Batch(inputs - 0.3, targets)), of(Batch(0.5 + 0.5 * (inputs - 0.5), targets))
    assert darker["brightness"] == pytest.approx(plain["brightness"] - 0.3)
    assert darker["contrast"] == pytest.approx(plain["contrast"])
    assert flatter["contrast"] == pytest.approx(plain["contrast"] / 2)
    assert flatter["edges"] == pytest.approx(plain["edges"] / 2)
    inverted = of(Batch(1 - inputs, targets))
    assert inverted["brightness"] == pytest.approx(1 - plain["brightness"])
    assert inverted["edges"] == pytest.approx(plain["edges"])


def test_separability_grows_with_the_distance_of_class_means_and_falls_with_the_spread_within():
    labels = torch.arange(3).repeat_interleave(4)
    noise = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = torch.eye(3, 5, dtype=torch.float64)
    found = [separability(scale * means[labels] + noise, labels, 3)["separability"] for scale in (0.0, 1, 3, 10)]
    assert found == sorted(found) and 0 < found[0] < found[-1] < 1
    wider = separability(3 * means[labels] + 2 * noise, labels, 3)
    assert wider["separability"] < found[2]
    assert wider["within"] == pytest.approx(2 * separability(noise, labels, 3)["within"])


def test_the_spread_within_classes_does_not_depend_on_how_many_samples_there_are():
    generator = torch.Generator().manual_seed(0)
    found = []
    for shots in (2, 50):
        labels = torch.arange(400 // shots).repeat_interleave(shots)
        noise = torch.randn(len(labels), 3, dtype=torch.float64, generator=generator)
        found.append(separability(noise, labels, 400 // shots)["within"])
    assert found == pytest.approx([3**0.5, 3**0.5], rel=0.1)


def test_lone_samples_and_images_all_alike_give_finite_numbers():
    lone = of(support(1))
    assert lone["within"] == 0 and lone["separability"] == 1
    alike = of(Batch(torch.ones(WAYS, 3, 9, 9), torch.arange(WAYS)))
    assert all(abs(value) < 1e6 for value in alike.values()) and alike["separability"] == 0


def test_images_are_looked_at_in_one_form_whatever_their_channels_and_size():
    inputs, _ = support(channels=3)
    assert embedding(grey(inputs)).shape == embedding(grey(inputs[:, :1, :9, :15])).shape
    assert torch.equal(embedding(grey(inputs)), embedding(grey(inputs)))
