"""Encoders of several modalities: what each sees, and what is put side by side."""

import pytest
import torch
from small import conv4

from pipeline.errors import InputError
from pipeline.models.late_fusion import LateFusion
from pipeline.models.norm import Given, Recorded, Running

BOTH = ["image", "depth"]


def fused(**options) -> LateFusion:
    return LateFusion({"image": conv4(), "depth": conv4()}, [1, 1], features=12, **options).double()


def inputs(samples: int = 6, *, there: torch.Tensor | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    made = torch.rand(samples, 2, 16, 16, generator=generator, dtype=torch.float64)
    if there is None:
        return made
    seen = there.to(made)[:, None, None, None].expand(-1, 1, 16, 16)
    return torch.cat([made[:, :1], seen * made[:, 1:], seen], 1)


def test_features_are_those_of_both_encoders_side_by_side():
    model, given = fused(), inputs()
    parts = [model.get_submodule(name)(given[:, at : at + 1]) for at, name in enumerate(BOTH)]
    assert torch.equal(model(given), torch.cat(parts, 1)) and model(given).shape[1] == model.features
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"image", "depth"}


def test_a_modality_that_is_not_there_leaves_the_others_larger():
    there = torch.tensor([1, 0, 1, 1, 0, 1])
    model, given = fused(told=frozenset({"depth"})), inputs(there=there)
    image, depth = model.image(given[:, :1]), model.depth(given[:, 1:2])
    found, lacks = model(given), there == 0
    assert torch.equal(found[~lacks], torch.cat([image, depth], 1)[~lacks])
    assert torch.equal(found[lacks], torch.cat([2 * image, 0 * depth], 1)[lacks])


def test_norms_of_the_encoders_keep_statistics_of_their_own():
    """Law 8: with statistics from elsewhere a feature depends on its own sample, of each encoder by its own statistics."""
    model, recorded, running = fused(), Recorded(), Running(fused()).double()
    model(inputs(), recorded)
    assert {name.split("_")[0] for name in recorded.statistics} == {"image", "depth"} and len(recorded.statistics) == 8
    running.absorb(recorded.statistics)
    given = Given(recorded.statistics)
    torch.testing.assert_close(model(inputs(), given)[2:3], model(inputs()[2:3], given))
    means = {name: mean for name, (mean, _) in recorded.statistics.items()}
    assert not torch.equal(means["image_block0"], means["depth_block0"])


def test_a_name_that_modules_use_is_refused():
    with pytest.raises(InputError, match="data.modalities: 'train' is what every module has"):
        LateFusion({"image": conv4(), "train": conv4()}, [1, 1], features=12)
