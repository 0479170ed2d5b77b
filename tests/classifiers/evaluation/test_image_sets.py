"""Opening sets: what is wrong is told before anything is evaluated."""

import numpy as np
import pytest

from classifiers.evaluation import image_sets, label_maps
from input_pipeline import sources
from input_pipeline.imagenet import wordnet_ids
from input_pipeline.source import ArraySource
from input_pipeline.sources.digits import DIGIT_NAMES
from launch.errors import InputError
from tests.classifiers.evaluation import tiny

DIGITS = dict(name="digits", split="validation")


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ({}, "config.sets is empty"),
        ({"a/b": dict(source=DIGITS)}, "config.sets.a/b: the name must consist of letters"),
        ({"a": dict(path="x")}, "config.sets.a has no field 'path'; use source, label_map"),
        ({"a": dict(label_map="")}, "config.sets.a needs the field 'source'"),
        ({"a": dict(source=DIGITS, label_map="v2")}, "config.sets.a.label_map must be one of ''"),
    ],
)
def test_wrong_fields(specs, said):
    with pytest.raises(InputError, match=said):
        image_sets.check_specs(specs)


def test_a_missing_set_says_how_to_prepare_it(tmp_path):
    path = tmp_path / "imagenet-r"
    spec = dict(
        source=dict(name="image_folder", path=str(path)),
        label_map="imagenet_r",
        prepare="unpack imagenet-r.tar",
    )
    with pytest.raises(InputError) as raised:
        image_sets.open_sets({"r": spec})
    said = str(raised.value)
    assert said.startswith(f"config.sets.r: {path} does not exist") and "\n" not in said
    assert said.endswith("; to prepare the set: unpack imagenet-r.tar")


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range(label, monkeypatch):
    images = np.zeros((4, 2, 2, 3), np.uint8)
    source = ArraySource(images, np.array([0, 1, label, 2]), ("a", "b", "c"))
    monkeypatch.setattr(sources, "load", lambda spec: source)
    with pytest.raises(
        InputError, match=f"image 2: its label must be below the 3 classes, got {label}"
    ):
        image_sets.open_sets({"test": dict(source=DIGITS)})


def test_an_empty_set(monkeypatch):
    source = ArraySource(np.zeros((0, 2, 2, 3), np.uint8), np.zeros(0, int), ("a",))
    monkeypatch.setattr(sources, "load", lambda spec: source)
    with pytest.raises(InputError, match="the set has no images"):
        image_sets.open_sets({"test": dict(source=DIGITS)})


def test_objectnet_loses_its_border_and_other_classes(tmp_path):
    folders = sorted([*objects(), "air_freshener", "zoom"])
    images = {f"{name}/{i}.png": tiny.png(i, border=2) for name in folders for i in range(2)}
    path = tiny.write_zip(tmp_path / "objectnet.zip", images)
    spec = dict(source=dict(name="image_folder", path=path), label_map="objectnet")
    evaluation_set = image_sets.open_sets({"objectnet": spec})["objectnet"]
    assert len(evaluation_set.source) == 226 and len(evaluation_set.label_map.class_names) == 113
    assert evaluation_set.source.labels.tolist() == [
        label for label in range(113) for _ in range(2)
    ]
    for i in (0, 1, 225):
        example = evaluation_set.source[i]
        assert example["image"].shape == (4, 4, 3) and (example["image"][..., 2] == 7).all()
        name = evaluation_set.label_map.class_names[example["label"]]
        assert evaluation_set.source.key(i) == f"{name}/{i % 2}.png"


def objects():
    return label_maps.wnid_table("objectnet_wnids.txt")


def test_chosen_classes_of_a_set(tmp_path):
    wnids = sorted(["n01443537", "n01484850", *wordnet_ids()[500:510]])
    path = tiny.write_zip(
        tmp_path / "r.zip", {f"{w}/{i}.png": tiny.png(i) for w in wnids for i in range(2)}
    )
    source = dict(name="image_folder", path=path, classes=["n01484850", "n01443537"])
    spec = dict(source=source, label_map="imagenet_r")
    evaluation_set = image_sets.open_sets({"r": spec})["r"]
    assert evaluation_set.label_map.class_names == ("n01484850", "n01443537")
    assert evaluation_set.source.labels.tolist() == [1, 1, 0, 0]
    assert [evaluation_set.label_map.answers[label] for label in (1, 2)] == [1, 0]


def model_check(evaluation_set, num_classes, names):
    with pytest.raises(InputError) as raised:
        evaluation_set.check_model("runs/a", num_classes, names)
    return str(raised.value)


def test_another_model():
    evaluation_set = image_sets.open_sets({"test": dict(source=DIGITS)})["test"]
    names = list(DIGIT_NAMES)
    evaluation_set.check_model("runs/a", 10, None)
    evaluation_set.check_model("runs/a", 10, names)
    said = model_check(evaluation_set, 1000, None)
    assert said == (
        "config.sets.test: runs/a was trained for 1000 classes, the set has 10; choose another "
        "set, or a label_map"
    )
    said = model_check(evaluation_set, 10, names[::-1])
    assert "config.sets.test: label 0 must be 'nine', as for runs/a, got 'zero'" in said


def test_another_model_of_a_mapped_set(tmp_path):
    images = {f"{label}/0.png": tiny.png(label) for label in range(1000)}
    source = dict(name="image_folder", path=tiny.write_zip(tmp_path / "v2.zip", images))
    evaluation_set = image_sets.open_sets({"v2": dict(source=source, label_map="imagenet_v2")})[
        "v2"
    ]
    evaluation_set.check_model("runs/a", 1000, None)
    evaluation_set.check_model("runs/a", 1000, list(wordnet_ids()))
    evaluation_set.check_model("runs/a", 1000, [f"class {k}" for k in range(1000)])
    assert "label_map='imagenet_v2' needs the 1,000 classes of ImageNet" in model_check(
        evaluation_set, 10, None
    )
    said = model_check(evaluation_set, 1000, list(wordnet_ids())[::-1])
    assert "label 0 must be 'n15075141', as for runs/a, got 'n01440764'" in said
