"""Synthetic images as a fixed share of every batch."""

from fractions import Fraction

import numpy as np
import pytest

from input_pipeline.batches import loader
from input_pipeline.batches.mixture import FixedWeight, Union, check_weight
from input_pipeline.source import ArraySource
from launch.errors import InputError

ROWS = np.arange(10)


def source(first, n, domain):
    images = np.arange(first, first + n, dtype=np.uint8).reshape(n, 1, 1, 1)
    return ArraySource(images, np.arange(n) % 2, ("a", "b"), domain)


def mixed(real=7, synthetic=23):
    """Image i is filled with i; the real ones come first."""
    return Union([source(0, real, 0), source(real, synthetic, 1)])


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize(
    ("weight", "batch_size"), [(0.5, 10), (0.3, 10), (0.1, 20), (1 / 3, 3), (2 / 3, 6), (0.25, 4)]
)
def test_the_share_is_exact_in_every_batch(weight, batch_size):
    batches = loader.batches(mixed(), batch_size, 0, synthetic_weight=weight)
    counts = [int(batches[k]["domain"].sum()) for k in range(200)]
    assert set(counts) == {round(weight * batch_size)}


@pytest.mark.parametrize(
    ("weight", "batch_size"), [(0.25, 10), (0.33, 10), (1 / 3, 8), (0.01, 10), (0.999, 7)]
)
def test_where_it_is_not_whole_the_sum_is_exact(weight, batch_size):
    batches = loader.batches(mixed(), batch_size, 0, synthetic_weight=weight)
    counts = np.array([int(batches[k]["domain"].sum()) for k in range(300)])
    meant = Fraction(weight).limit_denominator(1000) * batch_size
    assert set(counts) == {int(meant), int(meant) + 1}
    assert np.cumsum(counts).tolist() == [int(meant * k) for k in range(1, 301)]


@pytest.mark.parametrize("weight", [0.0, 0, 0.3, 0.5, 0.77, 1.0, 1])
def test_each_example_once_an_epoch_of_its_domain(weight):
    batches = loader.batches(mixed(), 10, 3, synthetic_weight=weight)
    drawn = [batches[k] for k in range(60)]
    images = np.concatenate([batch["image"][:, 0, 0, 0] for batch in drawn])
    domain = np.concatenate([batch["domain"] for batch in drawn])
    np.testing.assert_array_equal(domain, images >= 7)
    for number, first, n in ((0, 0, 7), (1, 7, 23)):
        run = images[domain == number]
        epochs = run[: len(run) // n * n].reshape(-1, n)
        expected = np.tile(np.arange(first, first + n), (len(epochs), 1))
        np.testing.assert_array_equal(np.sort(epochs, axis=1), expected)
        # Two of 85 orders of 7 images may be the same.
        assert len({tuple(epoch) for epoch in epochs}) >= 0.9 * len(epochs)
    assert domain.mean() == pytest.approx(weight, abs=1 / 600)


def test_without_synthetic_images_it_is_as_with_the_real_ones_alone():
    def augment(example, rng):
        return {**example, "noise": rng.random()}

    alone = loader.batches(source(0, 7, 0), 10, 5, augment=augment)
    zero = loader.batches(mixed(), 10, 5, augment=augment, synthetic_weight=0.0)
    for k in (0, 1, 20):
        assert_equal(zero[k], alone[k])


def test_domains_are_shuffled_over_the_places():
    plan = FixedWeight(mixed().domain, 0.3, 10, seed=0)
    found = np.array([plan(k, ROWS) >= 7 for k in range(3000)])
    # Every place is synthetic three times in ten, whatever its neighbour is.
    assert np.abs(found.mean(axis=0) - 0.3).max() < 4 * np.sqrt(0.21 / 3000)
    both = (found[:, :-1] & found[:, 1:]).mean()
    assert both == pytest.approx(0.3 * 2 / 9, abs=0.01)


def test_the_runs_of_both_domains_have_nothing_to_do_with_each_other():
    domain = np.repeat(np.array([0, 1], np.int32), 50)
    plan = FixedWeight(domain, 0.5, 100, seed=0)
    drawn = plan(0, np.arange(100))
    real, synthetic = drawn[drawn < 50], drawn[drawn >= 50] - 50
    assert (real == synthetic).sum() < 8


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_load_the_same_batches(hosts):
    whole = loader.batches(mixed(), 12, 0, synthetic_weight=0.3)
    parts = [
        loader.batches(mixed(), 12, 0, synthetic_weight=0.3, rows=rows)
        for rows in np.split(np.arange(12), hosts)
    ]
    for k in range(30):
        rows = [part[k] for part in parts]
        joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        assert_equal(joined, whole[k])


def test_a_resumed_run_on_another_number_of_hosts_goes_on_alike():
    whole = loader.batches(mixed(), 12, 0, synthetic_weight=0.7)
    run = list(loader.iterate(whole, 0, 20))
    for rows in np.split(np.arange(12), 3):
        part = loader.batches(mixed(), 12, 0, synthetic_weight=0.7, rows=rows)
        for k, batch in enumerate(loader.iterate(part, 13, 20), start=13):
            assert_equal(batch, {name: values[rows] for name, values in run[k].items()})


def test_a_far_batch():
    plan = FixedWeight(mixed().domain, 0.3, 10, seed=0)
    assert (plan(10**17, ROWS) >= 7).sum() == 3


def test_domains_may_be_anywhere_in_the_source():
    shuffled = ArraySource(
        np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1),
        np.zeros(6, np.int32),
        ("a",),
        np.array([1, 0, 1, 1, 0, 1], np.int32),
    )
    batch = loader.batches(shuffled, 6, 0, synthetic_weight=2 / 3)[0]
    assert np.sort(batch["image"][:, 0, 0, 0]).tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["domain"].sum() == 4


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (-0.1, r"synthetic_weight must be .*got -0\.1"),
        (1.01, r"synthetic_weight must be .*got 1\.01"),
        (float("nan"), r"synthetic_weight must be .*got nan"),
        ("half", r"synthetic_weight must be .*got 'half'"),
        (True, r"synthetic_weight must be .*got True"),
    ],
)
def test_wrong_weights(weight, said):
    with pytest.raises(InputError, match=said):
        loader.batches(mixed(), 10, 0, synthetic_weight=weight)


def test_a_domain_that_is_not_there():
    real, synthetic = np.zeros(3, np.int32), np.ones(3, np.int32)
    check_weight(real, 0.0)
    check_weight(synthetic, 1.0)
    with pytest.raises(
        InputError,
        match=r"synthetic_weight=0\.25 needs synthetic images to fill 0\.25 of every batch",
    ):
        check_weight(real, 0.25)
    with pytest.raises(
        InputError, match=r"synthetic_weight=0\.25 needs real images to fill 0\.75 of every batch"
    ):
        check_weight(synthetic, 0.25)
