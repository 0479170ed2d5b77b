"""classifiers.zero_shot through its command line, against transformers and PyTorch."""

import cv2
import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from classifiers import zero_shot
from classifiers.clip.templates import load
from classifiers.extractors import features as kept_features
from classifiers.weights.__main__ import run as weights
from input_pipeline import sources
from launch.files import read_json
from tests.parity.test_clip import torch_pixels
from tests.support import ROOT, tiny_clips
from tests.support.commands import run

CONFIG = f"{ROOT}/configs/clip/zero_shot_digits.py"
TEST = dict(name="digits", split="test")


@pytest.fixture(scope="module")
def peer():
    return tiny_clips.clip()


@pytest.fixture(scope="module")
def clip_run(peer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    source = tiny_clips.save(peer, folder / "source")
    assert weights(["weights", f"--from=transformers:{source}", f"--to={folder / 'tiny'}"]) == 0
    return folder / "tiny"


def expected(peer, folder, templates):
    """Logits by transformers and PyTorch, and labels."""
    source = sources.load(TEST)
    images = np.stack([source[i]["image"] for i in range(len(source))])
    images = np.repeat(images, 3, -1) if images.shape[-1] == 1 else images
    of_images = peer.get_image_features(torch_pixels(images / np.float32(127.5) - 1)).pooler_output
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    classes = []
    for name in source.class_names:
        texts = [template.replace("{}", name) for template in templates]
        length = dict(padding="max_length", max_length=tiny_clips.LENGTH, truncation=True)
        tokens = tokenizer(texts, return_tensors="pt", **length)["input_ids"]
        of_texts = peer.get_text_features(tokens).pooler_output
        mean = torch.nn.functional.normalize(of_texts, dim=1).mean(0)
        classes.append(mean / mean.norm())
    of_images = torch.nn.functional.normalize(of_images, dim=1)
    logits = of_images @ torch.stack(classes).T * peer.logit_scale.exp()
    return logits, torch.tensor(source.labels.astype(int))


def test_against_a_direct_computation(peer, clip_run, tmp_path, monkeypatch):
    argv = [f"--config.clips={(str(clip_run),)!r}"]
    assert run(zero_shot.main, CONFIG, tmp_path / "run", *argv) == 0
    result = read_json(tmp_path / "run/evaluation_test.json")
    own = ("a photo of the number {}.", "the digit {}.")
    for arm, templates in (("tiny 1", load("1")), ("tiny own", own)):
        logits, labels = expected(peer, clip_run.parent / "source", templates)
        said = result["arms"][arm]
        right = logits.argmax(1) == labels
        assert said["accuracies"] == pytest.approx([float(right.float().mean())])
        top5 = (logits.topk(5).indices == labels[:, None]).any(1).float().mean()
        assert said["top5"] == pytest.approx([float(top5)])
        loss = torch.nn.functional.cross_entropy(logits, labels)
        assert said["loss"] == pytest.approx([float(loss)], rel=1e-4)
        per_class = [float(right[labels == label].float().mean()) for label in range(10)]
        assert said["per_class"] == pytest.approx(per_class)
    assert result["arms"]["tiny 1"]["loss"] != result["arms"]["tiny own"]["loss"]

    # The same again, with another set of sentences: no image is looked at.
    def compute(*args, **kwargs):
        raise AssertionError("features are computed again")

    monkeypatch.setattr(kept_features, "_compute", compute)
    argv += ["--config.templates=('1',)"]
    assert run(zero_shot.main, CONFIG, tmp_path / "run", *argv) == 0
    again = read_json(tmp_path / "run/evaluation_test.json")
    assert again["arms"] == {"tiny 1": result["arms"]["tiny 1"]}


WRONG = {
    "a template without braces": (
        ["--config.own_templates=('a digit',)"],
        "templates must hold {} once each, for the name of the class, got 'a digit'; add it",
    ),
    "another set": (["--config.templates=('8',)"], "templates must be 1, 7, 80 or a list of sen"),
    "other names": (
        ["--config.class_names=('a', 'b')"],
        "class 0 must be 'zero', as in the images of config.sets.test.source, got 'a'",
    ),
    "no clip": (["--config.clips=()"], "config.clips must list CLIP runs, got none; add one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name, clip_run, tmp_path, capsys):
    argv, said = WRONG[name]
    argv = argv if name == "no clip" else [f"--config.clips={(str(clip_run),)!r}", *argv]
    assert run(zero_shot.main, CONFIG, tmp_path / "run", *argv) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_words_are_needed(clip_run, tmp_path, capsys):
    (tmp_path / "set/n01440764").mkdir(parents=True)
    cv2.imwrite(f"{tmp_path}/set/n01440764/1.png", np.zeros((9, 9, 3), np.uint8))
    config = tmp_path / "config.py"
    text = (ROOT / "configs/clip/zero_shot_digits.py").read_text()
    source = f'dict(name="image_folder", path="{tmp_path}/set")'
    config.write_text(text.replace('dict(name="digits", split=args["split"])', source))
    argv = [f"--config.clips={(str(clip_run),)!r}"]
    assert run(zero_shot.main, config, tmp_path / "run", *argv) == 2
    assert "config.class_names must give the classes of config.sets.test" in capsys.readouterr().err
