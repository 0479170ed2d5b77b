"""Rules and draws on numbers that can be checked by eye."""

import numpy as np
import pytest

from imagen_ft.filters.selection import Rule, balanced, check_per_class, combine, draw, random_part
from launch.errors import InputError

SCORES = np.array([0.9, 0.1, 0.5, 0.5, 0.2, 0.8, 0.3, 0.4])
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])


def kept(mask):
    return np.flatnonzero(mask).tolist()


def test_limits():
    assert kept(Rule("highest", limit=0.5).passes(SCORES, LABELS)) == [0, 5]
    assert kept(Rule("lowest", limit=0.3).passes(SCORES, LABELS)) == [1, 4]
    of_classes = Rule("highest", limit=(0.5, 0.2))
    assert kept(of_classes.passes(SCORES, LABELS)) == [0, 5, 6, 7]


def test_shares():
    assert kept(Rule("highest", share=0.5).passes(SCORES, LABELS)) == [0, 2, 5, 7]
    assert kept(Rule("lowest", share=0.25).passes(SCORES, LABELS)) == [1, 4]
    of_all = Rule("highest", share=0.25, each_class=False)
    assert kept(of_all.passes(SCORES, LABELS)) == [0, 5]
    assert Rule("highest", share=1.0).passes(SCORES, LABELS).all()


def test_combinations():
    first, second = Rule("highest", limit=0.45), Rule("lowest", limit=0.85)
    passing = [rule.passes(SCORES, LABELS) for rule in (first, second)]
    assert kept(combine(passing, "all")) == [2, 3, 5]
    assert kept(combine(passing, "any")) == list(range(8))


def test_so_many_of_each_class():
    passing = np.array([1, 0, 1, 1, 0, 1, 0, 0], bool)
    found = {seed: kept(draw(passing, SCORES, LABELS, 2, seed)) for seed in range(8)}
    # Of three that pass two are drawn; of the other class the best join the one that passes.
    assert all(set(rows[:2]) < {0, 2, 3} and rows[2:] == [5, 7] for rows in found.values())
    assert len(set(map(tuple, found.values()))) == 3
    assert kept(draw(passing, -SCORES, LABELS, 2, 0))[2:] == [4, 5]
    with pytest.raises(
        InputError, match=r"config\.per_class must be at most .*got 5; label 0 has 4"
    ):
        check_per_class(LABELS, 5)


def test_balance_and_random_parts():
    mask = np.array([1, 1, 1, 1, 0, 1, 1, 0], bool)
    parts = [balanced(mask, LABELS, seed) for seed in range(6)]
    assert all(np.bincount(LABELS[part]).tolist() == [2, 2] for part in parts)
    assert all(not (part & ~mask).any() for part in parts)
    assert len({tuple(kept(part)) for part in parts}) > 1
    everything = np.ones(8, bool)
    parts = [random_part(everything, LABELS, {0: 1, 1: 3}, seed) for seed in range(20)]
    assert all(np.bincount(LABELS[part]).tolist() == [1, 3] for part in parts)
    assert np.all(np.logical_or.reduce(parts))
