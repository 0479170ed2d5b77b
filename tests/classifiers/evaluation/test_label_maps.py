"""The classes of the shifted sets, against what others publish; an oracle is right on each."""

import hashlib
import json

import numpy as np
import pytest

from classifiers import evaluate, from_config
from classifiers.evaluation import label_maps
from input_pipeline import class_names
from input_pipeline.imagenet import wordnet_ids
from launch.errors import InputError
from launch.files import read_json
from tests.classifiers.evaluation import tiny
from tests.support import commands

IDS = wordnet_ids()
NAMES = dict(zip(IDS, class_names.load("imagenet"), strict=True))
# SHA-256 of the ids (timm has the same list), and of the labels of the three sets as others list
# them: R and A in WiSE-FT's code, ObjectNet in its authors' table of labels by ObjectNet's number.
IDS_DIGEST = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
DIGESTS = {
    "imagenet_r": "3e907704eb85df5dc454d4c1a68429f9d71a4711555026eccd8bdf7b568ed6f2",
    "imagenet_a": "e5ce3e8a08365ce06111d9762b64b11eba26be290d3283c92e1d68c31b38d963",
    "objectnet": "6cb1b012d091dc9d51f43a1cd5e9719d9a3490597ca503e162b68be28ac2ac67",
}
# From ObjectNet's mapping files: folders, and names of ImageNet's classes.
OBJECTNET = {
    "chair": ["barber chair", "folding chair", "rocking chair"],
    "alarm_clock": ["analog clock", "digital clock"],
    "bicycle": ["tandem bicycle", "mountain bike"],
    "t-shirt": ["T-shirt"],
    "full_sized_towel": ["bath towel"],
    "hand_towel_or_rag": ["dishcloth"],
    "butchers_knife": ["cleaver"],
    "drying_rack_for_dishes": ["plate rack"],
    "wheel": ["car wheel", "paddle wheel"],
    "banana": ["banana"],
}


def folders(name):
    """As in the authors' archives."""
    table = label_maps.wnid_table(f"{name}_wnids.txt")
    return sorted([*table, "air_freshener", "zoom"] if name == "objectnet" else table)


def digest(labels):
    return hashlib.sha256(json.dumps(labels, separators=(",", ":")).encode()).hexdigest()


def test_wordnet_ids():
    assert hashlib.sha256("\n".join(IDS).encode()).hexdigest() == IDS_DIGEST
    assert (IDS[0], IDS[1]) == ("n01440764", "n01443537")
    assert (NAMES[IDS[0]], NAMES[IDS[1]], NAMES[IDS[999]]) == ("tench", "goldfish", "toilet paper")


@pytest.mark.parametrize(("name", "count"), [("imagenet_r", 200), ("imagenet_a", 200)])
def test_lists_of_200(name, count):
    wnids = folders(name)
    assert len(wnids) == count and set(wnids) < set(IDS)
    assert digest([IDS.index(wnid) for wnid in wnids]) == DIGESTS[name]
    label_map = label_maps.resolve(name, wnids)
    assert label_map.class_names == tuple(wnids) and label_map.num_model_classes == 1000
    assert np.flatnonzero(label_map.competing).tolist() == [IDS.index(wnid) for wnid in wnids]
    assert all(label_map.answers[IDS.index(wnid)] == label for label, wnid in enumerate(wnids))
    assert (label_map.answers == label_maps.NO_LABEL).sum() == 1000 - count


def test_objectnet():
    label_map = label_maps.resolve("objectnet", folders("objectnet"))
    assert len(label_map.class_names) == 113 and "air_freshener" not in label_map.class_names
    accepted = [np.flatnonzero(label_map.answers == label).tolist() for label in range(113)]
    assert digest(sorted(accepted)) == DIGESTS["objectnet"]
    assert label_map.competing.all() and label_map.border == 2
    for folder, names in OBJECTNET.items():
        labels = accepted[label_map.class_names.index(folder)]
        assert sorted(NAMES[IDS[label]] for label in labels) == sorted(names)
    # Other folders lie between, so labels of the source are others.
    assert [folders("objectnet")[label] for label in label_map.source_labels] == list(
        label_map.class_names
    )


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("imagenet_v2", sorted(map(str, range(1000)))),
        ("imagenet_v2", IDS),
        ("imagenet_sketch", IDS),
    ],
)
def test_permutations(name, classes):
    label_map = label_maps.resolve(name, classes)
    assert sorted(label_map.answers) == list(range(1000)) and label_map.competing.all()
    for source_label, folder in enumerate(classes):
        label = int(folder) if folder.isdecimal() else IDS.index(folder)
        assert label_map.answers[label] == source_label


def test_v2_sorted_as_text_is_another_order():
    label_map = label_maps.resolve("imagenet_v2", sorted(map(str, range(1000))))
    assert label_map.class_names[:4] == ("0", "1", "10", "100")
    assert (label_map.answers != np.arange(1000)).sum() == 988
    assert (label_map.answers[10], label_map.answers[2]) == (2, 1 + 1 + 10 + 100)


def test_a_part_competes_with_the_whole():
    label_map = label_maps.resolve("imagenet_r", folders("imagenet_r")[3:5], partial=True)
    assert len(label_map.class_names) == 2 and label_map.competing.sum() == 200
    assert (label_map.answers >= 0).sum() == 2


@pytest.mark.parametrize(
    ("name", "classes", "said"),
    [
        ("imagenet_q", IDS, "must be one of '', 'imagenet_v2'.*got 'imagenet_q'"),
        ("imagenet_r", IDS, "needs 200 classes, .* but the set has 'n01440764'"),
        ("imagenet_sketch", IDS[1:], "but the set lacks 'n01440764'"),
        ("imagenet_v2", ("tench",), "the set has 'tench'"),
        (
            "objectnet",
            IDS,
            r"label_map='objectnet' needs 113 classes, alarm_clock, backpack, \.\.\., but the set",
        ),
    ],
)
def test_other_classes(name, classes, said):
    with pytest.raises(InputError, match=said):
        label_maps.resolve(name, classes)


def written_sets(folder):
    """All six sets with one image for each of ImageNet's classes that they have, as zips."""
    number = {wnid: label for label, wnid in enumerate(IDS)}
    images = {"val": {f"{wnid}/0.png": tiny.png(label) for wnid, label in number.items()}}
    images["sketch"] = images["val"]
    images["v2"] = {f"{label}/0.png": tiny.png(label) for label in range(1000)}
    for name in "ra":
        of_set = folders(f"imagenet_{name}")
        images[name] = {f"{wnid}/0.png": tiny.png(number[wnid]) for wnid in of_set}
    objects = label_maps.wnid_table("objectnet_wnids.txt")
    images["objectnet"] = {"air_freshener/0.png": tiny.png(0, border=2)} | {
        f"{name}/{wnid}.png": tiny.png(number[wnid], border=2)
        for name, wnids in objects.items()
        for wnid in wnids
    }
    maps = {"val": "", "objectnet": "objectnet"}
    return {
        name: dict(
            source=dict(
                name="image_folder", path=tiny.write_zip(folder / f"{name}.zip", found)
            ),
            label_map=maps.get(name, f"imagenet_{name}"),
        )
        for name, found in images.items()
    }  # fmt: skip


@pytest.mark.slow
def test_an_oracle_is_right_on_every_set(tmp_path, monkeypatch, capsys):
    """Through the command: three networks at once, of which one knows the truth."""
    monkeypatch.setattr(from_config, "make_model", lambda config, classes: tiny.Oracle(classes, ()))
    params = tiny.Oracle(1000, ()).init(None, None)["params"]
    # The last one's second-best output is right; the best one is often of a class that R lacks.
    shifts = {"real": (0, 1), "next": (1, 1), "second": (1, -1)}
    for name, (shift, second) in shifts.items():
        variables = {"params": params | {"shift": np.int32(shift), "second": np.int32(second)}}
        tiny.write_run(tmp_path / "runs" / name, variables)
    config = tiny.write_config(tmp_path / "config.py", written_sets(tmp_path))
    assert commands.run(evaluate.main, config, tmp_path / "runs", "--config.batch_size=250") == 0
    sets = ("val", "v2", "sketch", "r", "a", "objectnet")
    results = {name: read_json(tmp_path / "runs" / f"evaluation_{name}.json") for name in sets}
    assert [results[name]["num_images"] for name in sets] == [1000, 1000, 1000, 200, 200, 125]
    for name, result in results.items():
        arms = result["arms"]
        assert arms["real"]["mean"] == 1.0 and set(arms["real"]["per_class"]) == {1.0}, name
        assert arms["real"]["loss"][0] < 1e-3 and arms["real"]["calibration_error"][0] < 1e-3
        assert arms["second"]["top5"] == [1.0]
        expected = {shift: accuracy(name, *shifts[shift]) for shift in shifts}
        assert {arm: arms[arm]["mean"] for arm in arms} == pytest.approx(expected), name
    assert (
        results["val"]["arms"]["next"]["mean"] == 0 and results["r"]["arms"]["second"]["mean"] > 0.5
    )
    table = capsys.readouterr().out
    assert "objectnet: 125 images, 113 classes" in table
    assert (tmp_path / "runs" / "evaluation.png").stat().st_size > 10_000


def accuracy(name, shift, second):
    """By the authors' rules, image by image."""
    objects = label_maps.wnid_table("objectnet_wnids.txt").values()
    of_set = {"r": folders("imagenet_r"), "a": folders("imagenet_a")}.get(name, IDS)
    competing, right = set(of_set), []
    for label, wnid in enumerate(IDS):
        said = IDS[(label + shift) % 1000], IDS[(label + shift + second) % 1000]
        if name == "objectnet":
            right += [said[0] in wnids for wnids in objects if wnid in wnids]
        elif wnid in competing:
            # All others have the same output: then it is the first one.
            right.append(next(one for one in (*said, of_set[0]) if one in competing) == wnid)
    return np.mean(right)
