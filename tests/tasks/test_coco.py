"""COCO's figures: those of its own evaluator, and with a group counted twice those of the images twice."""

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.tasks.coco import AP50, AP75, SIDE, Found, figures, judged, points_of


def images(number: int, *, ways: int = 2) -> list[Found]:
    """Noise: boxes near the truth, doubled, misplaced; crowds; images of other classes; one with nothing found."""
    generator = torch.Generator().manual_seed(number)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    made = []
    for image in range(12):
        low, count = uniform(4, 2) * 0.6, 1 + image % 4
        truth = torch.zeros(5, 5, dtype=torch.float64)
        truth[:count, :4] = torch.cat([low, low + 0.1 + 0.3 * uniform(4, 2)], 1)[:count]
        truth[:count, 4] = 1 + torch.randint(ways, (count,), generator=generator)
        if image % 3 == 0:
            truth[count - 1, 4] *= -1
        found = torch.zeros(20, 6, dtype=torch.float64)
        if image != 5:
            near = truth[:count, :4].repeat(2, 1) + 0.06 * (uniform(2 * count, 4) - 0.5)
            places = uniform(6, 2) * 0.7
            found[: 2 * count + 6, :4] = torch.cat([near, torch.cat([places, places + 0.2], 1)])
            found[: 2 * count + 6, 4] = 0.02 + 0.9 * uniform(2 * count + 6)
            found[: 2 * count + 6, 5] = torch.randint(ways, (2 * count + 6,), generator=generator).double()
            found[:count, 5] = truth[:count, 4].abs() - 1
        made.append(Found(found, truth, [image % 3, 3 + image % 2]))
    return made


def by_coco(made: list[Found]) -> COCOeval:
    """pycocotools from end to end."""
    truths, results = [], []
    for number, (found, truth, classes) in enumerate(made):
        for left, top, right, bottom, code in truth.tolist():
            if code:
                box = [SIDE * left, SIDE * top, SIDE * (right - left), SIDE * (bottom - top)]
                truths.append({"id": 1 + len(truths), "image_id": number, "category_id": classes[abs(int(code)) - 1],
                               "bbox": box, "area": box[2] * box[3], "iscrowd": int(code < 0)})  # fmt: skip
        for left, top, right, bottom, score, way in found.tolist():
            if score > 0:
                box = [SIDE * left, SIDE * top, SIDE * (right - left), SIDE * (bottom - top)]
                results.append({"image_id": number, "category_id": classes[int(way)], "bbox": box, "score": score})
    known = COCO()
    known.dataset = {
        "images": [{"id": number} for number in range(len(made))],
        "annotations": truths,
        "categories": [{"id": name} for name in sorted({c for one in made for c in one.classes})],
    }
    known.createIndex()
    evaluation = COCOeval(known, known.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("number", range(3))
def test_figures_are_those_of_cocos_evaluator(number):
    made = images(number)
    found = figures(judged(made, [0] * len(made)), torch.ones(1, 1, dtype=torch.float64))
    expected = by_coco(made).stats
    assert found.precision[0].mean().item() == pytest.approx(expected[0], abs=1e-12) and expected[0] > 0.1
    assert found.precision[0, AP50].item() == pytest.approx(expected[1], abs=1e-12)
    assert found.precision[0, AP75].item() == pytest.approx(expected[2], abs=1e-12)
    assert found.recall[0].mean().item() == pytest.approx(expected[8], abs=1e-12)
    one = figures(judged(made, [0] * len(made), thresholds=[0.5]), torch.ones(1, 1, dtype=torch.float64))
    assert one.precision[0, 0].item() == pytest.approx(expected[1], abs=1e-12)


@pytest.mark.parametrize("number", range(3))
def test_points_of_recall_are_those_of_cocos_evaluator(number):
    """pycocotools' `precision` is (thresholds, 101, classes, areas, detections), -1 for a class without an object."""
    made = images(number)
    once = torch.ones(1, 1, dtype=torch.float64)
    found = {each.name: points_of(each, once)[0][0] for each in judged(made, [0] * len(made))}
    evaluation = by_coco(made)
    expected = torch.from_numpy(evaluation.eval["precision"])[:, :, :, 0, -1]
    assert len(found) > 1
    for place, name in enumerate(evaluation.params.catIds):
        if name in found and not found[name].isnan().any():
            assert torch.allclose(found[name], expected[..., place], rtol=0, atol=1e-12), name
        else:
            assert (expected[..., place] == -1).all()


def test_a_group_that_counts_twice_is_as_if_its_images_were_there_twice():
    made = images(4)
    groups = [number // 3 for number in range(len(made))]
    counts = torch.tensor([[1.0, 1, 1, 1], [2, 0, 1, 3]], dtype=torch.float64)
    found = figures(judged(made, groups), counts)
    again = [made[number] for number in range(len(made)) for _ in range(int(counts[1, groups[number]]))]
    expected = by_coco(again).stats
    assert found.precision[1].mean().item() == pytest.approx(expected[0], abs=1e-3)
    assert found.recall[1].mean().item() == pytest.approx(expected[8], abs=1e-12)
    assert found.precision[0].mean().item() == pytest.approx(by_coco(made).stats[0], abs=1e-12)
