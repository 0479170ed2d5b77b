import numpy as np
import pytest

from input_pipeline.files import InputError
from input_pipeline.repeated import repeat


@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
def test_every_example_comes_so_often_and_in_one_batch(repeats):
    batch = 4 * repeats
    for k in (0, 7, 10**12):
        examples, repetitions = repeat(k * batch + np.arange(batch), repeats)
        np.testing.assert_array_equal(np.bincount(examples - examples[0]), [repeats] * 4)
        assert examples[0] == 4 * k  # where the batch before has ended
        for example in set(examples):
            assert sorted(repetitions[examples == example]) == list(range(repeats))


def test_processes_agree():
    positions = np.arange(24) + 96
    whole = repeat(positions, 3)
    parts = [repeat(part, 3) for part in np.split(positions, 4)]
    for together, own in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(own), together)


def test_other_batch_sizes_only_split_an_example_at_their_border():
    examples, repetitions = repeat(np.arange(16), 3)
    assert examples.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5]
    assert repetitions.tolist() == [0, 1, 2] * 5 + [0]


def test_less_than_once():
    with pytest.raises(InputError, match="repeats=0: every example comes at least once"):
        repeat(np.arange(3), 0)
