import numpy as np
import pytest

from input_pipeline.batches import loader
from input_pipeline.batches.mixture import Union
from input_pipeline.source import ArraySource, Subset, in_memory
from input_pipeline.sources.digits import digits
from input_pipeline.sources.subsets import per_class
from launch.errors import InputError


def source(values, domain=0, names=("a", "b")):
    images = np.array(values, np.uint8).reshape(-1, 1, 1, 1)
    return ArraySource(images, np.array(values, np.int32) % 2, names, domain)


def pixels(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def test_union_is_one_source_after_the_other():
    union = Union([source([1, 2, 3]), source([], domain=1), source([10, 11], domain=1)])
    assert len(union) == 5
    assert pixels(union) == [1, 2, 3, 10, 11]
    assert union.labels.tolist() == [1, 0, 1, 0, 1]
    assert union.domain.tolist() == [0, 0, 0, 1, 1]
    assert [int(union[i]["domain"]) for i in range(5)] == [0, 0, 0, 1, 1]
    assert union.class_names == ("a", "b")
    with pytest.raises(IndexError):
        union[5]


def test_batches_of_a_union_hold_both_domains():
    union = Union([source(range(20)), source(range(20), domain=1)])
    batch = loader.batches(union, 40, seed=0)[0]
    assert batch["domain"].sum() == 20
    assert 0 < batch["domain"][:20].sum() < 20


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("b", "a"), "class 0 is 'a' in source 0, but 'b' in source 1"),
        (("a", "b", "c"), r"^source 0 lacks 1 of the 3 classes of source 1: 'c'; add images .* 1 "),
        (("b",), r"^source 1 lacks 1 of the 2 classes of source 0: 'a'; add images of them, or"),
        (("a", "b", *map(str, range(1000))), r"0 lacks 1000 of .* '3', '4' and 995 more; add"),
    ],
)
def test_union_refuses_other_classes(names, said):
    labels = [0]
    with pytest.raises(InputError, match=said) as raised:
        Union([source(labels, names=("a", "b")), source(labels, names=names)])
    assert len(str(raised.value)) < 200


def test_union_of_nothing():
    with pytest.raises(InputError, match="a union needs at least one source"):
        Union([])


def test_subset_keeps_its_order():
    subset = Subset(source([5, 6, 7, 8]), np.array([3, 0, 0]))
    assert pixels(subset) == [8, 5, 5]
    assert subset.labels.tolist() == [0, 1, 1]
    with pytest.raises(IndexError):
        subset[3]


def test_per_class_is_balanced_fixed_and_nested():
    pool = digits("pool")
    small, large = per_class(pool, 3, seed=1), per_class(pool, 10, seed=1)
    assert np.bincount(large.labels).tolist() == [10] * 10
    assert large.indices.tolist() == per_class(pool, 10, seed=1).indices.tolist()
    assert set(small.indices) < set(large.indices)
    assert set(small.indices) != set(per_class(pool, 3, seed=2).indices)


@pytest.mark.parametrize("n", [0, 3])
def test_per_class_refuses_what_a_class_has_not(n):
    with pytest.raises(InputError, match=r"class 'b'|class 'a'"):
        per_class(source([0, 1, 2, 3, 4]), n, seed=0)


def test_in_memory():
    union = Union([source([1, 2]), source([3], domain=1)])
    copy = in_memory(union)
    assert pixels(copy) == pixels(union)
    assert copy.labels.tolist() == union.labels.tolist()
    assert copy.domain.tolist() == [0, 0, 1] and copy.class_names == union.class_names


def test_keys():
    first, second = source([1, 2, 3]), source([10, 11], domain=1)
    union = Union([first, second])
    assert [union.key(i) for i in range(5)] == ["0/0", "0/1", "0/2", "1/0", "1/1"]
    subset = Subset(union, np.array([4, 0]))
    assert [subset.key(i) for i in range(2)] == ["1/1", "0/0"]
    assert in_memory(subset).key(0) == "1/1"
