"""What the command says of CLIP's weights that do not fit."""

import json

import pytest
import safetensors.torch
import torch

from classifiers.clip.run import ClipRun
from classifiers.clip.templates import SETS, fill, load
from classifiers.models import clip
from classifiers.weights.__main__ import run
from classifiers.weights.clip_configs import check_preset
from classifiers.weights.clip_rules import check_layout
from launch.errors import InputError
from tests.support import tiny_clips
from tests.support.clip_vocabulary import write_tokenizer
from tests.support.tiny_clips import LENGTH
from tests.support.written_runs import write_run

PUBLISHED = {name: clip.make({"name": name}) for name in clip.PRESETS}


def changed(path, **fields):
    """A JSON file with other values; `part.field` is in a part of it."""
    config = json.loads(path.read_text())
    for name, value in fields.items():
        part, _, field = name.rpartition("__")
        (config[part] if part else config)[field] = value
    path.write_text(json.dumps(config))


def one_line(capsys):
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


WRONG = {
    "another family": (
        dict(model_type="bert"),
        "and the other names match none of the known layouts",
    ),
    "activation": (
        dict(vision_config__hidden_act="relu"),
        "config.json: hidden_act must be gelu or quick_gelu or gelu_pytorch_tanh, got 'relu'",
    ),
    "size": (
        dict(vision_config__image_size=16),
        "image_size and the crop size of preprocessor_config",
    ),
    "shapes": (
        dict(projection_dim=12),
        "must have the shape (12, 16) of the model, got (10, 16); choose",
    ),
    "depth": (
        dict(text_config__num_hidden_layers=3),
        "encoder.layers.2.layer_norm1.bias of the model is missing",
    ),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_clips.save(tiny_clips.clip(), tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files(name, source, tmp_path, capsys):
    fields, said = WRONG[name]
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    changed(tmp_path / "config.json", **fields)
    target = tmp_path / "run"
    assert run(["weights", f"--from=transformers:{tmp_path}", f"--to={target}"]) == 2
    assert said in one_line(capsys) and not target.exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model=clip_vit_b32"], "image.width must be 768 for --model=clip_vit_b32, got 20"),
        (["--model=vit_b16"], "clip.name must be one of clip_vit_b32"),
        (["--size=64"], "--size is for classifiers"),
        (["--tokenizer=no"], "--tokenizer=no has no tokenizer"),
    ],
)
def test_wrong_flags(argv, said, source, tmp_path, capsys):
    flags = [f"--from=transformers:{source}", f"--to={tmp_path / 'run'}", *argv]
    assert run(["weights", *flags]) == 2
    assert said in one_line(capsys)


def test_single_files_of_others(tmp_path, capsys):
    """Without a config a file of open_clip does not say its activation; OpenAI's needs none."""
    file = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file(tiny_clips.openai_tensors(tiny_clips.clip(num_heads=1)), file)
    to = f"--to={tmp_path / 'run'}"
    assert run(["weights", f"--from=open_clip:{file}", to]) == 2
    assert "is missing next to these open_clip weights" in one_line(capsys)
    config = {"model_cfg": {"quick_gelu": False, "embed_dim": 10, "new": 1}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert run(["weights", f"--from=openai:{file}", to]) == 2
    assert "quick_gelu must be true for OpenAI's weights, got False" in one_line(capsys)
    assert run(["weights", f"--from=open_clip:{file}", to]) == 2
    assert "model_cfg.new=1 is not implemented" in one_line(capsys)
    safetensors.torch.save_file({"fc.weight": torch.zeros(2, 2)}, file)
    (tmp_path / "open_clip_config.json").unlink()
    assert run(["weights", f"--from=openai:{file}", to]) == 2
    assert "the weights are of another model, use CLIP weights" in one_line(capsys)


def test_activations_are_compared():
    """A published network with another activation is not that network."""
    assert PUBLISHED["clip_vit_b16"].image.activation == "quick_gelu"
    check_preset(PUBLISHED["clip_vit_b16"], "clip_vit_b16", "x")
    for tower in ("image", "text"):
        laion = clip.make({"name": "clip_vit_b16", tower: {"activation": "gelu"}})
        with pytest.raises(InputError, match=rf"^x: {tower}.activation must be 'quick_gelu' for"):
            check_preset(laion, "clip_vit_b16", "x")
        with pytest.raises(InputError, match=r"^the openai layout cannot hold a CLIP with"):
            check_layout(laion, "openai")
    with pytest.raises(InputError, match="a CLIP with SigLIP's towers"):
        check_layout(PUBLISHED["siglip_b16"], "open_clip")


def test_configs_of_models():
    for model in PUBLISHED.values():
        assert clip.make(clip.describe(model)) == model
    for fields, said in (
        (dict(image=dict(name="swin")), "clip.image.name must be one of vit, resnet"),
        (dict(name="clip_vit_b16", text=dict(layers=1)), "clip.text has no field 'layers'"),
        (dict(image=dict(name="vit", width=8)), "clip.image.depth is missing"),
    ):
        with pytest.raises(InputError, match=said):
            clip.make(fields)


def test_a_tokenizer_of_another_model(source, tmp_path, capsys):
    words = write_tokenizer(tmp_path / "words", LENGTH)
    vocabulary = json.loads((words / "vocab.json").read_text())
    vocabulary["more</w>"] = len(vocabulary)
    (words / "vocab.json").write_text(json.dumps(vocabulary))
    argv = [f"--from=transformers:{source}", f"--to={tmp_path / 'run'}", f"--tokenizer={words}"]
    assert run(["weights", *argv]) == 0
    with pytest.raises(InputError, match=r"must have at most 518 tokens and the end token 517"):
        ClipRun.open(tmp_path / "run").tokenizer(["cat"])
    write_run(tmp_path / "other", {"model": {}, "seeds": 0})
    with pytest.raises(InputError, match="must be a CLIP run, got another kind of run"):
        ClipRun.open(tmp_path / "other")


def test_templates():
    """As many as they say, all for one class; the seven are of the eighty."""
    assert [len(load(name)) for name in SETS] == [1, 7, 80]
    assert set(load("7")) < set(load("80")) and len(set(load("80"))) == 80
    assert fill("the {} is {here}", "a {}") == "the a {} is {here}"
    for named, said in (("9", "must be 1, 7, 80"), ([], "at least one"), (["a cat"], "hold {} on")):
        with pytest.raises(InputError, match=said):
            load(named)
