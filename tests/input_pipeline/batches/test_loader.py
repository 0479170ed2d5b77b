import threading

import grain
import numpy as np
import pytest

from input_pipeline.batches import loader
from input_pipeline.source import ArraySource
from launch.errors import InputError


def numbered(n, classes=3):
    """A source whose image i is filled with i."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 2, 1))
    names = tuple("abcdefgh"[:classes])
    return ArraySource(images.copy(), np.arange(n) % classes, names)


def order(dataset, count):
    return np.concatenate([dataset[k]["image"][:, 0, 0, 0] for k in range(count)])


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
        assert a[key].dtype == b[key].dtype


def test_a_batch():
    batch = loader.batches(numbered(10), 4, seed=0)[7]
    assert {key: (rows.shape, rows.dtype) for key, rows in batch.items()} == {
        "image": ((4, 2, 2, 1), np.uint8),
        "label": ((4,), np.int32),
        "domain": ((4,), np.int32),
    }
    np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0, 0] % 3)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (3, 8), (1, 2), (8, 8)])
def test_each_example_once_an_epoch_across_batch_borders(n, batch_size):
    epochs = 6
    run = order(loader.batches(numbered(n), batch_size, seed=1), -(-n * epochs // batch_size))
    run = run[: n * epochs].reshape(epochs, n)
    np.testing.assert_array_equal(np.sort(run, axis=1), np.tile(np.arange(n), (epochs, 1)))
    if n > 5:
        assert len({tuple(epoch) for epoch in run}) == epochs  # a new order every epoch


def test_batch_k_depends_on_seed_and_k_only():
    one = loader.batches(numbered(10), 4, seed=3)
    forward = [one[k] for k in range(8)]
    two = loader.batches(numbered(10), 4, seed=3)
    for k in (7, 2, 2, 0, 5):
        assert_equal(two[k], forward[k])
    other = loader.batches(numbered(10), 4, seed=4)
    assert not np.array_equal(order(other, 8), order(one, 8))
    # Not the same epochs one later, as with seed + epoch.
    assert not np.array_equal(order(other, 5)[:10], order(one, 5)[10:20])


def test_orders_are_uniform():
    run = order(loader.batches(numbered(5), 5, seed=0), 2000).reshape(2000, 5)
    for position in range(5):
        counts = np.bincount(run[:, position], minlength=5)
        assert np.square(counts - 400).sum() / 400 < 18.5  # chi-squared, 4 df, p = 0.001
    assert 300 < (run[1:] == run[:-1])[:, 0].sum() < 500  # one epoch says nothing of the next


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_give_the_same_batch(processes):
    whole = loader.batches(numbered(10), 12, seed=0)
    split = np.split(np.arange(12), processes)
    parts = [loader.batches(numbered(10), 12, seed=0, rows=rows) for rows in split]
    for k in range(5):
        rows = [part[k] for part in parts]
        joined = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        assert_equal(joined, whole[k])


def test_starting_at_k_equals_running_to_k():
    dataset = loader.batches(numbered(10), 4, seed=0)
    run = list(loader.iterate(dataset, 0, 9))
    resumed = list(loader.iterate(loader.batches(numbered(10), 4, seed=0), 5, 9))
    assert len(run) == 9 and len(resumed) == 4
    for k, batch in enumerate(run):
        assert_equal(batch, dataset[k])
    for a, b in zip(resumed, run[5:], strict=True):
        assert_equal(a, b)
    assert list(loader.iterate(dataset, 3, 3)) == []


def test_a_far_step_costs_no_more():
    dataset = loader.batches(numbered(10), 4, seed=0)
    (batch,) = loader.iterate(dataset, 10**12, 10**12 + 1)
    assert batch["image"].shape == (4, 2, 2, 1)


def test_many_cores_read_at_once(monkeypatch):
    monkeypatch.setattr(loader, "_READ_AHEAD", grain.ReadOptions(4, 5))
    together = threading.Barrier(4, timeout=10)

    def meet(example):
        together.wait()
        return example

    met = loader.batches(numbered(10), 1, seed=0, transform=meet)
    alone = loader.batches(numbered(10), 1, seed=0)
    for k, batch in enumerate(loader.iterate(met, 0, 8)):
        assert_equal(batch, alone[k])


def test_reading_ahead_happens_in_another_thread_and_two_batches_deep(monkeypatch):
    monkeypatch.setattr(loader, "_READ_AHEAD", grain.ReadOptions(1, 2))
    threads, reached = [], threading.Event()

    def spy(example):
        threads.append(threading.current_thread())
        if len(threads) == 3:
            reached.set()
        return example

    running = loader.iterate(loader.batches(numbered(10), 1, seed=0, transform=spy), 0, 100)
    next(running)
    assert reached.wait(timeout=10)  # batches 1 and 2 are read although nobody asked
    running.close()
    assert threading.current_thread() not in threads and len(threads) <= 3


def noisy(example, rng):
    return {**example, "noise": rng.random()}


@pytest.mark.parametrize("weight", [None, 0.5])
def test_repeated_examples_are_each_augmented_by_themselves(weight):
    source = numbered(20)
    source.domain[10:] = 1
    options = dict(augment=noisy, synthetic_weight=weight)
    thrice = loader.batches(source, 12, 0, repeats=3, **options)
    once = loader.batches(source, 4, 0, **options)
    for k in range(7):
        batch, drawn = thrice[k], once[k]
        np.testing.assert_array_equal(batch["image"], np.repeat(drawn["image"], 3, axis=0))
        np.testing.assert_array_equal(batch["label"], np.repeat(drawn["label"], 3))
        assert len(set(batch["noise"])) == 12
        rows = np.array([1, 2, 3, 11])
        part = loader.batches(source, 12, 0, repeats=3, rows=rows, **options)[k]
        assert_equal(part, {name: values[rows] for name, values in batch.items()})


def test_what_is_repeated_is_decoded_once():
    decoded = []

    def spy(example):
        decoded.append(int(example["label"]))
        return example

    loader.batches(numbered(10), 12, 0, transform=spy, repeats=4)[0]
    assert len(decoded) == 3


def test_repeats_that_do_not_divide_the_batch_go_on_in_the_next():
    source = numbered(20)
    thrice = loader.batches(source, 8, 0, repeats=3, augment=noisy)
    drawn = np.concatenate([loader.batches(source, 8, 0)[k]["label"] for k in range(2)])
    found = [thrice[k] for k in range(6)]
    labels = np.concatenate([batch["label"] for batch in found])
    np.testing.assert_array_equal(labels, np.repeat(drawn, 3))
    assert len({value for batch in found for value in batch["noise"].tolist()}) == 48
    rows = np.array([1, 6])
    part = loader.batches(source, 8, 0, repeats=3, augment=noisy, rows=rows)[4]
    assert_equal(part, {name: values[rows] for name, values in found[4].items()})


@pytest.mark.parametrize(
    ("repeats", "weight", "message"),
    [
        (0, None, "repeats must be at least 1, got 0"),
        (-1, 0.5, "repeats must be at least 1, got -1"),
        (5, 0.5, r"repeats must divide batch_size=12 with synthetic_weight=0\.5, got 5"),
    ],
)
def test_wrong_repeats(repeats, weight, message):
    source = numbered(10)
    source.domain[5:] = 1
    with pytest.raises(InputError, match=message):
        loader.batches(source, 12, 0, repeats=repeats, synthetic_weight=weight)


@pytest.mark.parametrize("weight", [None, 0.5])
def test_grains_own_checkpoints_go_on_alike(weight):
    source = numbered(20)
    source.domain[10:] = 1
    dataset = loader.batches(source, 4, 0, augment=noisy, synthetic_weight=weight)
    reader = loader._read_ahead(dataset[3:9], workers=0)
    grain.experimental.assert_equal_output_after_checkpoint(reader)


def test_transform_maps_single_examples():
    def invert(example):
        assert example["image"].shape == (2, 2, 1)
        return {**example, "image": 255 - example["image"], "extra": np.float32(example["label"])}

    plain = loader.batches(numbered(10), 4, seed=0)[2]
    inverted = loader.batches(numbered(10), 4, seed=0, transform=invert)[2]
    np.testing.assert_array_equal(inverted["image"], 255 - plain["image"])
    np.testing.assert_array_equal(inverted["extra"], plain["label"])


def test_an_error_while_reading_ahead_arrives_as_it_is():
    def fail(example):
        raise InputError("x.tfrecord: record 3")

    with pytest.raises(InputError) as error:
        next(loader.iterate(loader.batches(numbered(4), 2, seed=0, transform=fail), 0, 5))
    assert str(error.value) == "x.tfrecord: record 3"


def test_wrong_batches_are_refused():
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        loader.batches(numbered(4), 0, seed=0)
    with pytest.raises(InputError, match="no examples"):
        loader.batches(numbered(0), 10, seed=0)


@pytest.mark.parametrize(("n", "sizes"), [(10, [4, 4, 2]), (8, [4, 4]), (3, [3])])
def test_eval_batches_in_order_with_a_mask(n, sizes):
    batches = list(loader.eval_batches(numbered(n), 4))
    assert all(len(rows) == 4 for batch in batches for rows in batch.values())
    assert [int(batch["mask"].sum()) for batch in batches] == sizes
    assert all(batch["mask"].dtype == bool for batch in batches)
    images = np.concatenate([batch["image"] for batch in batches])[:, 0, 0, 0]
    mask = np.concatenate([batch["mask"] for batch in batches])
    np.testing.assert_array_equal(images[mask], np.arange(n))
    assert mask[:n].all() and not images[~mask].any()


def test_processes_together_give_the_same_eval_batches():
    whole = list(loader.eval_batches(numbered(9), 6))
    split = ([0, 1, 4], [2, 3, 5])  # the second one's last batch is all padding
    parts = [list(loader.eval_batches(numbered(9), 6, rows=np.array(rows))) for rows in split]
    for k, batch in enumerate(whole):
        for part, rows in zip(parts, split, strict=True):
            np.testing.assert_array_equal(part[k]["mask"], batch["mask"][rows])
            mine = batch["image"][rows][part[k]["mask"]]
            np.testing.assert_array_equal(part[k]["image"][part[k]["mask"]], mine)
            assert len(part[k]["image"]) == 3


def test_eval_batches_transform():
    (batch,) = loader.eval_batches(numbered(2), 3, lambda e: {**e, "image": e["image"] + 1})
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], [1, 2, 0])
