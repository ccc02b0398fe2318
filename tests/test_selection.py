"""Choosing what to label: bounds that each strategy promises, and that a choice depends on features, budget and seed alone."""

import itertools

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.noise import Noise, Purpose
from pipeline.selection import GREEDY, Strategy, choose, k_means, squared_distances


def scattered(number: int, pool: int = 40, dim: int = 3) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(pool, dim))


def clumps(*, each: int, centres: int = 4, spread: float = 0.05) -> np.ndarray:
    """Samples (centres · each, centres) about as many directions at right angles, class by class."""
    generator = np.random.default_rng(0)
    return np.repeat(np.eye(centres), each, axis=0) + spread * generator.normal(size=(centres * each, centres))


def radius(points: np.ndarray, chosen) -> float:
    return float(squared_distances(points, points[list(chosen)]).min(1).max() ** 0.5)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_k_centre_covers_within_twice_the_best_radius(number, budget):
    points = scattered(number, pool=10)
    best = min(radius(points, own) for own in itertools.combinations(range(10), budget))
    for seed in range(3):
        assert radius(points, choose(points, budget, Strategy.K_CENTRE, seed=seed)) <= 2 * best + 1e-9


def test_the_mean_of_herding_nears_that_of_the_pool_faster_than_chance():
    points = scattered(0, pool=200)

    def gap(budget, strategy, seed=0):
        return np.linalg.norm(points[choose(points, budget, strategy, seed=seed)].mean(0) - points.mean(0))

    for budget in (2, 5, 10, 40):
        random = np.mean([gap(budget, Strategy.RANDOM, seed) for seed in range(30)])
        assert gap(budget, Strategy.HERDING) < random / 3
    # 1 / n instead of 1 / √n (Welling 2009, section 4).
    assert gap(80, Strategy.HERDING) < gap(5, Strategy.HERDING) / 8


@pytest.mark.parametrize("each", [4, 12, 50])
def test_typicality_takes_one_of_every_clump_and_that_from_its_middle(each):
    points = clumps(each=each)
    chosen = choose(points, 4, Strategy.TYPICALITY, seed=1)
    assert sorted(row // each for row in chosen) == [0, 1, 2, 3]
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    for row in chosen:
        own = np.arange(row // each * each, row // each * each + each)
        distances = np.sqrt(squared_distances(unit[own], unit[own])).mean(1)
        assert distances[row % each] <= np.median(distances) + 1e-9


def test_typicality_leaves_outliers_to_the_last():
    """Two far samples alone get a cluster each, but no label while larger clusters have any."""
    points = np.concatenate([clumps(each=20, centres=3, spread=0.3), 9 * np.eye(3)[:2] @ -np.ones((3, 3))])
    points[-1, 0] *= 3
    chosen = choose(points, 5, Strategy.TYPICALITY, seed=0)
    assert not set(chosen) & {60, 61}
    assert set(choose(points, 62, Strategy.TYPICALITY, seed=0)) == set(range(62))


@pytest.mark.parametrize("strategy", Strategy)
def test_a_choice_is_of_different_rows_and_the_same_each_time(strategy):
    points = scattered(3)
    for budget in (1, 7, len(points)):
        chosen = choose(points, budget, strategy, seed=5)
        assert len(chosen) == len(set(chosen)) == budget and set(chosen) <= set(range(len(points)))
        assert chosen == choose(points.astype(np.float64).copy(), budget, strategy, seed=5)


def test_the_seed_decides_what_is_drawn():
    points = scattered(3)
    for strategy in (Strategy.RANDOM, Strategy.K_CENTRE):
        assert len({tuple(choose(points, 5, strategy, seed=seed)) for seed in range(8)}) > 4
    assert len({tuple(choose(points, 5, Strategy.HERDING, seed=seed)) for seed in range(8)}) == 1


@pytest.mark.parametrize("strategy", GREEDY)
def test_a_larger_budget_goes_on_where_a_smaller_one_ends(strategy):
    points = scattered(4)
    whole = choose(points, 20, strategy, seed=2)
    assert all(choose(points, budget, strategy, seed=2) == whole[:budget] for budget in range(1, 20))


@pytest.mark.parametrize("strategy", [Strategy.HERDING, Strategy.K_CENTRE, Strategy.TYPICALITY])
def test_where_the_pool_lies_does_not_matter(strategy):
    """Moving it (but not its origin, from which directions are seen) changes nothing; neither does a turn of its axes."""
    points = scattered(6)
    turn, _ = np.linalg.qr(scattered(7, pool=3))
    moved = points if strategy is Strategy.TYPICALITY else points + 5
    assert choose(moved @ turn, 6, strategy, seed=0) == choose(points, 6, strategy, seed=0)


@pytest.mark.parametrize("strategy", Strategy)
def test_samples_that_look_alike_are_still_different_ones(strategy):
    assert sorted(choose(np.ones((9, 2)), 9, strategy, seed=0)) == list(range(9))
    assert sorted(choose(np.zeros((9, 2)), 9, strategy, seed=0)) == list(range(9))


def test_a_budget_larger_than_k_means_takes_clusters_takes_several_of_each(monkeypatch):
    monkeypatch.setattr("pipeline.selection.MOST_CLUSTERS", 4)
    chosen = choose(clumps(each=10), 12, Strategy.TYPICALITY, seed=0)
    assert [sorted(row // 10 for row in chosen[at : at + 4]) for at in (0, 4, 8)] == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("clusters", [1, 5, 30])
def test_k_means_leaves_no_cluster_empty_and_every_sample_with_its_nearest_centre(clusters):
    points = scattered(8, pool=30)
    labels = k_means(points, clusters, Noise(0, Purpose.CHOICE))
    assert sorted(set(labels.tolist())) == list(range(clusters))
    centres = np.stack([points[labels == cluster].mean(0) for cluster in range(clusters)])
    assert np.array_equal(squared_distances(points, centres).argmin(1), labels)


@pytest.mark.parametrize("budget", [0, -1, 41])
def test_a_budget_that_the_pool_does_not_allow_is_refused(budget):
    with pytest.raises(InputError, match=rf"--budget {budget}: there are 40 samples to choose from; give 1 to 40"):
        choose(scattered(0), budget, Strategy.RANDOM, seed=0)


def test_features_that_are_not_finite_are_refused():
    points = scattered(0)
    points[3, 1] = np.nan
    with pytest.raises(InputError, match="features are not finite"):
        choose(points, 2, Strategy.K_CENTRE, seed=0)
