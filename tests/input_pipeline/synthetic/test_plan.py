import numpy as np
import pytest

from input_pipeline.synthetic.plan import Plan, labels_for, splitmix64, usual_shard

PLAN = Plan((3, 0, 5, 2), copies=4, images_per_shard=7)


def test_global_order():
    labels = labels_for([2, 0, 1], 3)
    assert labels.dtype == np.int32
    assert labels.tolist() == [0, 0, 2] * 3


def test_every_image_has_one_place():
    assert (PLAN.num_images, PLAN.num_shards, PLAN.copy_size) == (40, 6, 10)
    assert [PLAN.shard_size(shard) for shard in range(6)] == [7, 7, 7, 7, 7, 5]
    found = [PLAN.indices(shard) for shard in range(6)]
    assert sorted(np.concatenate(found)) == list(range(40))
    for shard, indices in enumerate(found):
        assert [PLAN.locate(int(index)) for index in indices] == [
            (shard, record) for record in range(len(indices))
        ]
    # A copy ends before the next one begins.
    assert np.all(np.diff(np.concatenate(found) // 10) >= 0)


def test_the_order_never_changes():
    # SplitMix64 of 1: the first output of the reference generator seeded with 0.
    assert splitmix64(np.ones(1, np.uint64))[0] == 0xE220A8397B1DCDAF
    assert Plan((10,), 1, 10).order.tolist() == [2, 4, 6, 8, 5, 1, 7, 0, 9, 3]


def test_every_shard_has_many_classes():
    plan = Plan((1300,) * 1000, copies=1, images_per_shard=16_000)
    classes = np.array([len(np.unique(plan.labels[plan.indices(shard)])) for shard in range(81)])
    # Of 1,000 classes, 16 images each on average, a Poisson's e^-16 would be missing.
    assert classes.min() >= 998


def test_the_plan_of_twelve_million_images():
    """Shards, keys and counts of ten times ImageNet."""
    counts = np.full(1000, 1281)
    counts[:167] += 1  # 1,281,167
    plan = Plan(tuple(counts.tolist()), copies=10, images_per_shard=usual_shard((64, 64, 3)))
    assert plan.num_images == 12_811_670 and 100 < plan.num_shards < 1000
    times = np.zeros(plan.num_images, np.uint8)
    found = np.zeros(1000, np.int64)
    for shard in range(plan.num_shards):
        indices = plan.indices(shard)
        times[indices] += 1
        found += np.bincount(plan.labels[indices], minlength=1000)
    assert np.all(times == 1)
    np.testing.assert_array_equal(found, 10 * counts)


@pytest.mark.parametrize(
    ("shape", "quality", "megabytes"),
    [((64, 64, 3), None, 0.0092), ((256, 256, 3), 95, 0.0285), ((256, 256, 3), 75, 0.0118)],
)
def test_usual_shards(shape, quality, megabytes):
    """Photographs' usual sizes, of PNG by the 64 px ones and of JPEG by those of 256 px."""
    assert 100 < usual_shard(shape, quality) * megabytes < 200
    assert usual_shard((10**5, 10**5, 3)) == 1
