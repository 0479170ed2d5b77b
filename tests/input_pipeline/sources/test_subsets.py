"""Long tails, chosen classes and lists of records, through the fields of a config."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from input_pipeline import sources
from input_pipeline.batches.mixture import Union
from input_pipeline.source import ArraySource, in_memory
from input_pipeline.sources import subsets
from input_pipeline.sources.damaged_records import SkipDamaged
from input_pipeline.sources.subsets import long_tail_counts
from launch.errors import InputError
from launch.files import sha256

NAMES = ("ant", "bee", "cat", "dog")


class Named(ArraySource):
    """The key of image i is `class/i.png`."""

    def key(self, i):
        return f"{self.class_names[self.labels[i]]}/{i}.png"


def source(sizes=(8, 8, 8, 8)):
    """Image i is filled with i; classes are mixed."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Named(images, labels, NAMES[: len(sizes)], np.arange(len(labels)) % 2)


def apply(sizes=(8, 8, 8, 8), **fields):
    return subsets.apply(source(sizes), fields)


def pixels(found):
    return [int(found[i]["image"][0, 0, 0]) for i in range(len(found))]


def counts(found):
    return np.bincount(found.labels, minlength=len(found.class_names)).tolist()


def assert_consistent(found, sizes=(8, 8, 8, 8)):
    """All that is said of an example fits the example it came from."""
    whole = source(sizes)
    for i in range(len(found)):
        example = found[i]
        original = int(example["image"][0, 0, 0])
        name = whole.class_names[whole.labels[original]]
        assert found.class_names[example["label"]] == name
        assert example["label"] == found.labels[i] and example["label"].dtype == np.int32
        assert example["domain"] == found.domain[i] == original % 2
        assert found.key(i) == whole.key(original)


def test_nothing_asked_is_the_source_itself():
    whole = source()
    assert subsets.apply(whole, {"name": "x"}) is whole


# Cui et al. 2019: CIFAR-10 at the imbalances 100 and 10, as their and later lists have it.
@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        (100, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        (10, [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]),
        (1, [5000] * 10),
    ],
)
def test_the_published_long_tails(gamma, expected):
    assert long_tail_counts(10, 5000, gamma).tolist() == expected


@pytest.mark.parametrize("gamma", [50, 100, 200])
def test_the_long_tails_of_imagenet(gamma):
    found = long_tail_counts(1000, 1300, gamma)
    assert found[0] == 1300 and found[-1] == 1300 // gamma
    assert (np.diff(found) <= 0).all()
    k = np.arange(1, 1001)
    np.testing.assert_array_less(np.abs(found + 0.5 - 1300 * gamma ** (-(k - 1) / 999)), 0.5001)


def test_one_class_has_no_tail():
    assert long_tail_counts(1, 7, 3).tolist() == [7]


def test_a_long_tail_by_label():
    found = apply(long_tail=dict(n_max=8, gamma=8))
    assert counts(found) == [8, 4, 2, 1]
    assert_consistent(found)
    assert pixels(found) == sorted(pixels(found))


def test_a_long_tail_by_size():
    sizes = (3, 9, 5, 9)
    found = apply(sizes, long_tail=dict(n_max=8, gamma=8, order="size"))
    assert counts(found) == [1, 8, 2, 4]
    assert_consistent(found, sizes)


def test_a_class_that_has_fewer_gives_all():
    assert counts(apply((8, 3, 8, 8), long_tail=dict(n_max=8, gamma=8))) == [8, 3, 2, 1]


def test_long_tails_are_nested_and_have_seeds():
    def drawn(seed=0, **fields):
        return set(pixels(apply(long_tail=fields, subset_seed=seed)))

    large, small, steep = (drawn(n_max=n, gamma=g) for n, g in ((8, 2), (6, 2), (6, 6)))
    assert steep < small < large
    assert drawn(n_max=6, gamma=2) == small != drawn(1, n_max=6, gamma=2)
    # The head of a tail is what as many of every class would have.
    assert set(pixels(apply(per_class=1))) < small


def test_shots_with_several_seeds():
    draws = [pixels(apply(per_class=2, subset_seed=seed)) for seed in (0, 1, 2)]
    assert len({tuple(draw) for draw in draws}) == 3
    assert all(len(set(draw)) == 8 for draw in draws)
    assert draws[0] == pixels(subsets.per_class(source(), 2, seed=0))
    for seed, draw in enumerate(draws):
        assert set(draw) < set(pixels(apply(per_class=3, subset_seed=seed)))


@pytest.mark.parametrize("classes", [["dog", "bee"], [3, 1], ("dog", 1)])
def test_chosen_classes_are_numbered_anew_in_their_order(classes):
    found = apply(classes=classes)
    assert found.class_names == ("dog", "bee") and counts(found) == [8, 8]
    assert_consistent(found)
    assert pixels(found) == [i for i in pixels(source()) if source().labels[i] in (1, 3)]


def test_chosen_classes_can_keep_their_labels():
    found = apply(classes=["dog", "bee"], renumber=False)
    assert found.class_names == NAMES and counts(found) == [0, 8, 0, 8]
    assert_consistent(found)
    few = apply(classes=["dog", "bee"], renumber=False, per_class=2)
    assert counts(few) == [0, 2, 0, 2]


def test_a_class_has_the_same_images_whatever_else_is_chosen():
    tail = dict(n_max=8, gamma=2)
    for fields in (dict(per_class=3), dict(long_tail=tail)):
        part = apply(classes=["dog", "bee"], **fields)
        assert_consistent(part)
        assert part.class_names == ("dog", "bee")
    whole = apply(per_class=3)
    expected = {i for i in pixels(whole) if source().labels[i] in (1, 3)}
    assert set(pixels(apply(classes=["dog", "bee"], per_class=3))) == expected
    # The long tail of two classes is their own: the first has all.
    assert counts(apply(classes=["dog", "bee"], long_tail=tail)) == [8, 4]


def write(folder, keys, name="keep.txt"):
    path = folder / name
    text = json.dumps(keys) if name.endswith(".json") else "\n".join(keys)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return str(path)


@pytest.mark.parametrize("name", ["keep.txt", "keep.json"])
def test_records_of_a_list(tmp_path, name):
    whole = source()
    keys = [whole.key(i) for i in (30, 2, 17)]
    found = apply(keep=write(tmp_path, keys, name))
    assert pixels(found) == [2, 17, 30]
    assert_consistent(found)
    both = apply(keep=write(tmp_path, [whole.key(i) for i in range(25)], name), per_class=1)
    assert counts(both) == [1, 1, 1, 1] and max(pixels(both)) < 25


def test_lists_of_other_systems(tmp_path):
    whole = source()
    whole.key = lambda i: f"caf\udce9/{i}"  # a name of a file that is not UTF-8
    path = tmp_path / "keep.txt"
    path.write_bytes(b"caf\xe9/3\r\n\r\ncaf\xe9/1\r\n")
    assert pixels(subsets.apply(whole, {"keep": str(path)})) == [1, 3]


def test_another_list_has_another_digest(tmp_path):
    spec = {"name": "digits", "split": "pool"}
    assert sources.load(spec).digest() is None
    assert sources.load({**spec, "keep": None}).digest() is None
    lists = [write(tmp_path, [f"pool:{n}"], f"{n}.txt") for n in (1, 2)]
    ours = [sources.load({**spec, "keep": path}).digest() for path in lists]
    assert ours == [sha256(path) for path in lists] and ours[0] != ours[1]


def test_parts_have_the_digest_of_the_whole(tmp_path):
    images, labels, names = np.zeros((4, 1, 1, 1), np.uint8), np.arange(4) % 2, ("a", "b")
    whole = ArraySource(images, labels, names, digest="whole")
    spec = dict(per_class=1, classes=["b", "a"])
    for part in (subsets.apply(whole, spec), SkipDamaged(whole), Union([whole]), in_memory(whole)):
        assert part.digest() == "whole"
    path = write(tmp_path, ["0", "1", "2", "3"])
    kept = subsets.apply(whole, {"keep": path})
    assert SkipDamaged(kept).digest() == f"whole and {sha256(path)}"
    unchanging = ArraySource(images, labels, names)
    assert Union([unchanging, kept, whole]).digest() == f"whole and {sha256(path)} and whole"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            ["ant/1.png", "x", "y"],
            r"keep.txt: the source has no record '.*' \(its first is '",
        ),
        (["b", "a", "a", "b"], r"keep\.txt lists 'a' twice; list it once"),
        (["", " "], r"keep\.txt lists no keys, so nothing would be kept"),
    ],
)
def test_wrong_lists(tmp_path, keys, said):
    with pytest.raises(InputError, match=said):
        apply(keep=write(tmp_path, keys))


def test_the_first_unknown_key_is_named(tmp_path):
    whole = source()
    with pytest.raises(InputError, match="no record 'x'"):
        apply(keep=write(tmp_path, [whole.key(4), "x", whole.key(3), "y"]))


@pytest.mark.parametrize("text", ["{}", "[1]", '"ant"'])
def test_json_that_is_no_list_of_keys(tmp_path, text):
    (tmp_path / "keep.json").write_text(text)
    with pytest.raises(InputError, match=r"keep\.json must be a JSON list of strings"):
        apply(keep=str(tmp_path / "keep.json"))


@pytest.mark.parametrize("name", ["none.txt", "none.json", "."])
def test_no_list(tmp_path, name):
    with pytest.raises(InputError, match="no such file"):
        apply(keep=str(tmp_path / name))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(per_class=9), "per_class must be at most the 8 images of class 'ant', got 9"),
        (dict(per_class=1.5), r"per_class must be a whole number of at least 1, got 1\.5"),
        (
            dict(per_class=2, classes=["cow"]),
            r"classes must be some of ant, bee, cat, dog \(4 in total\), got 'cow'",
        ),
        (dict(classes=[4]), r"classes must be some of ant, bee, cat, dog \(4 in total\), got 4"),
        (dict(classes=[-1]), r"classes must be some of ant, bee, cat, dog \(4 in total\), got -1"),
        (dict(classes=["ant", 0]), "classes must list each class once, got 0 twice"),
        (dict(classes=[]), r"classes must be a list"),
        (dict(classes="ant"), "classes must be a list of names or labels, got 'ant'"),
        (dict(renumber=True), "renumber=True needs classes"),
        (dict(subset_seed=1), "subset_seed=1 draws nothing"),
        (
            dict(subset_seed=-1, per_class=1),
            "subset_seed must be a whole number of at least 0, got -1",
        ),
        (dict(per_class=1, long_tail=dict(n_max=8, gamma=2)), "per_class=1 and long_tail both set"),
        (
            dict(long_tail=dict(n_max=8)),
            "long_tail must have n_max and gamma, and may have order, got n_max, order",
        ),
        (
            dict(long_tail=dict(n_max=8, gamma=2, k=1)),
            "long_tail must have n_max and gamma, .*got gamma, k, n_max",
        ),
        (
            dict(long_tail=dict(n_max=9, gamma=2)),
            "n_max must be at most the 8 images of the largest class, 'ant', got 9",
        ),
        (dict(long_tail=dict(n_max=8, gamma=9)), "gamma must be from 1 to n_max=8, .*got 9"),
        (
            dict(long_tail=dict(n_max=8, gamma=0.5)),
            r"long_tail\.gamma must be numbers of at least 1, got 8 and 0\.5",
        ),
        (
            dict(long_tail=dict(n_max="all", gamma=2)),
            r"long_tail\.n_max and long_tail\.gamma must be .*got 'all' and 2",
        ),
        (
            dict(long_tail=dict(n_max=8, gamma=float("nan"))),
            r"long_tail\.gamma must be numbers of at least 1, got 8 and nan",
        ),
        (
            dict(long_tail=dict(n_max=8, gamma=2, order="x")),
            "order must be 'label' or 'size', got 'x'",
        ),
    ],
)
def test_wrong_fields(fields, said):
    with pytest.raises(InputError, match=said) as error:
        apply(**fields)
    assert "\n" not in str(error.value)


def test_a_config_of_all_fields():
    spec = ConfigDict(
        dict(
            name="digits",
            split="pool",
            classes=("seven", "two"),
            renumber=True,
            long_tail=dict(n_max=50, gamma=5.0),
            subset_seed=3,
        )
    )
    spec.per_class = None
    found = sources.load(spec)
    assert found.class_names == ("seven", "two") and counts(found) == [50, 10]
    assert sources.load(spec.copy_and_resolve_references()).labels.tolist() == found.labels.tolist()


@pytest.mark.parametrize(
    "field",
    [
        dict(classes=[0.5]),
        dict(classes=[True]),
        dict(classes=1),
        dict(classes=[["a"]]),
        dict(classes="zero"),
        dict(long_tail=5),
        dict(per_class="3"),
        dict(per_class=0.5),
        dict(classes=[0], renumber="no"),
    ],
)
def test_values_of_another_type(field):
    with pytest.raises(InputError, match=next(iter(reversed(field)))):
        sources.load({"name": "digits", "split": "train", **field})
