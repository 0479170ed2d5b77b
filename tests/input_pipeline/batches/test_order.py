"""Orders of epochs: exact, uniform, cheap, and the same for everybody."""

import pickle
import threading

import numpy as np
import pytest

from input_pipeline.batches.order import Epochs, Shuffled


@pytest.mark.parametrize(("n", "positions"), [(1, 5), (7, 50), (30, 10), (100, 512)])
def test_every_epoch_is_a_permutation(n, positions):
    epochs = Epochs(n, seed=1)
    parts = [epochs(np.arange(start, start + positions)) for start in range(0, 6 * n, positions)]
    run = np.concatenate(parts)[: 6 * n].reshape(6, n)
    np.testing.assert_array_equal(np.sort(run, axis=1), np.tile(np.arange(n), (6, 1)))


def test_the_order_does_not_change():
    # Another order changes every number that was ever reported.
    for seed, epoch in ((0, 0), (3, 7), (0, 4 * 10**11)):
        found = Epochs(30, seed)(epoch * 30 + np.arange(30))
        expected = np.random.default_rng((seed, epoch)).permutation(30)
        np.testing.assert_array_equal(found, expected)
    assert Shuffled(30, 4, seed=3)(1, np.array([0, 3])).tolist() == [27, 28]


def test_all_orders_of_four_are_as_likely():
    run = Epochs(4, seed=0)(np.arange(4 * 2400)).reshape(2400, 4)
    _, counts = np.unique(run @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24
    assert np.square(counts - 100).sum() / 100 < 49.7  # chi-squared, 23 df, p = 0.001


def test_seeds_and_streams_have_nothing_to_do_with_each_other():
    runs = [Epochs(50, *at)(np.arange(150)).reshape(3, 50) for at in ((0, 0), (1, 0), (0, 1))]
    epochs = np.concatenate(runs)
    assert len({tuple(epoch) for epoch in epochs}) == 9
    # Of two orders one place in 50 is the same by chance.
    same = (epochs[:, None] == epochs[None]).mean(axis=-1)
    assert same[~np.eye(9, dtype=bool)].mean() < 0.04


def test_places_may_come_in_any_order():
    epochs = Epochs(10, seed=0)
    positions = np.array([25, 3, 3, 99, 0, 11])
    whole = epochs(np.arange(100))
    np.testing.assert_array_equal(Epochs(10, seed=0)(positions), whole[positions])
    assert epochs(np.array([], np.int64)).shape == (0,)


def test_two_epochs_are_held_at_four_bytes_an_example():
    epochs = Epochs(1000, seed=0)
    first = epochs(np.arange(10)).copy()
    for epoch in (1, 2, 5):
        epochs(1000 * epoch + np.arange(10))
        held = sum(order.nbytes for order in epochs._orders.values())
        assert held == 8000
    np.testing.assert_array_equal(epochs(np.arange(10)), first)


def test_threads_that_come_to_an_epoch_together_draw_it_once(monkeypatch):
    drawn, default_rng = [], np.random.default_rng
    together = threading.Barrier(8, timeout=10)
    epochs, found = Epochs(1000, seed=0), []

    def read():
        together.wait()
        found.append(epochs(np.arange(500, 1500)))

    monkeypatch.setattr(np.random, "default_rng", lambda s: drawn.append(s) or default_rng(s))
    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(drawn) == [(0, 0, 0), (0, 1, 0)]
    assert len(found) == 8 and all((one == found[0]).all() for one in found)


def test_a_pickled_copy_is_small_and_goes_on_alike():
    epochs = Epochs(10_000, seed=5, stream=1)
    before = epochs(np.arange(100))
    data = pickle.dumps(epochs)
    assert len(data) < 200
    np.testing.assert_array_equal(pickle.loads(data)(np.arange(100)), before)
