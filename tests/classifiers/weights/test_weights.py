"""The command that takes weights in and out, and what it says of files that do not fit."""

import json

import numpy as np
import pytest
import safetensors.numpy

from classifiers import evaluate, from_config, train, weights
from classifiers.models import presets
from classifiers.weights.__main__ import run
from classifiers.weights.config_files import write_configs
from launch.errors import InputError
from launch.files import read_json
from launch.runtime.run import Run
from tests.support.classifier_task import run as run_task
from tests.support.classifier_weights import draw, same
from tests.support.written_runs import write_run

FIELDS = dict(width=8, depth=1, num_heads=2, patch_size=4)
TINY_RESNET = dict(stage_sizes=(1,), width=4)


def save(folder, model, size=8, layout="timm", **changes):
    """Random weights, saved in a layout, with some tensors changed (None: left out)."""
    folder.mkdir(exist_ok=True)
    weights.save(folder, draw(model, size), model, (size, size, 3), layout)
    path = folder / "model.safetensors"
    tensors = {**safetensors.numpy.load_file(path), **changes}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.fixture
def vit(tmp_path):
    """A ViT, and its weights in timm's layout."""
    model = presets.make("vit", 3, **FIELDS)
    return model, save(tmp_path / "vit", model)


def command(*argv):
    return run(["weights", *map(str, argv)])


def one_line(capsys):
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def loaded(folder, seed=0):
    """The model and the variables of a run."""
    run = Run.open(folder).seeds[seed]
    shapes = run.shapes()
    model = from_config.make_model(run.config.model, shapes["params"]["head"]["bias"].shape[0])
    return model, run.variables(shapes)


BOTH_WAYS = [
    ("vit", "transformers"), ("vit", "timm"), ("resnet", "transformers"), ("resnet", "torchvision")
]  # fmt: skip


@pytest.mark.parametrize(("module", "layout"), BOTH_WAYS)
def test_in_and_out(module, layout, tmp_path, capsys):
    """Runs of ours to another library's files, and from them to an import: all the same."""
    fields = FIELDS | dict(norm_eps=1e-5, drop_path=0.1) if module == "vit" else TINY_RESNET
    model = presets.make(module, 3, **fields)
    variables = draw(model, 8)
    first = tmp_path / "first"
    config = {
        "model": dict(name=module, **fields),
        "seeds": 1,
        "total_steps": 0,
        "evaluation": dict(size=8),
    }
    write_run(first, config, variables)
    there = tmp_path / "there"
    assert command(f"--from={first}", f"--to={layout}:{there}") == 0
    assert (there / "model.safetensors").exists() and (there / "config.json").exists()
    back = tmp_path / "back"
    if layout == "transformers":
        assert command(f"--from={layout}:{there}", f"--to={back}") == 0
        network, imported = loaded(back)
        for name in ("width", "norm_eps", "stage_sizes", "pixels"):
            assert getattr(network, name, None) == getattr(model, name, None)
        assert read_json(back / "config.json")["evaluation"]["size"] == 8
    else:
        # The module alone has not all its fields.
        assert command(f"--from={layout}:{there}", f"--to={back}", f"--model={module}") == 2
        assert ("model." if module == "vit" else "stage_sizes") in one_line(capsys)
        assert not back.exists()
        network, size = weights.build(there, module, **fields)
        assert size == 8
        imported = weights.load(there, network, (8, 8, 3))
    same(imported, variables)


def test_an_import_is_evaluated_as_the_files_say(vit, tmp_path, monkeypatch):
    model, path = vit
    monkeypatch.setitem(presets.PRESETS, "small", presets.Preset(type(model), FIELDS))
    config = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], crop_pct=0.9)
    (path.parent / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
    assert command(f"--from=timm:{path}", f"--to={tmp_path}/run", "--model=small") == 0
    assert read_json(tmp_path / "run" / "config.json")["evaluation"]["crop_ratio"] == 0.9
    assert loaded(tmp_path / "run")[0].pixels == "imagenet"
    config["mean"] = [0.4, 0.4, 0.4]
    (path.parent / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
    with pytest.raises(
        InputError,
        match=r"the scaling of pixels must be .*got mean \[0\.4, 0\.4, 0\.4\]",
    ):
        weights.build(path, "small")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(hidden_act="relu"),
            "hidden_act must be 'gelu', the only one implemented, got 'relu'",
        ),
        (dict(qkv_bias=False), "qkv_bias must be True, the only one implemented, got False"),
        (dict(model_type="beit"), "model_type must be one of vit, resnet, deit, got 'beit'"),
        (dict(model_type=["vit"]), r"model_type must be one of vit, resnet, deit, got \['vit'\]"),
        (dict(hidden_size=10**9), "model.width must be at most 131072, got 1000000000"),
        (dict(num_hidden_layers=10**6), "model.depth must be at most 1000, got 1000000"),
        (dict(pretrained_cfg="vit"), "pretrained_cfg must be an object, got 'vit'"),
        (dict(pretrained_cfg=dict(mean=1, std=1)), "must be lists of numbers, got 1"),
        (dict(patch_size=[4, 4]), r"patch_size must be a positive whole number, got \[4, 4\]"),
        (
            dict(model_type="resnet", hidden_act="relu"),
            "hidden_sizes must be .*, the only ones implemented",
        ),
    ],
)
def test_configs_of_transformers_that_are_not_ours(changes, message, tmp_path):
    model = presets.make("vit", 3, **FIELDS)
    save(tmp_path / "vit", model, layout="transformers")
    write_configs(tmp_path / "vit", model, (8, 8, 3), "transformers")
    path = tmp_path / "vit" / "config.json"
    config = {**read_json(path), "hidden_sizes": [1, 2, 3, 4], **changes}
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        weights.build(tmp_path / "vit")


def test_grey_images(tmp_path, capsys):
    model = presets.make("vit", 3, **FIELDS)
    variables = draw(model, 8)
    variables["params"]["patch_embed"]["kernel"] = np.ones((4, 4, 1, 8), np.float32)
    config = dict(model=dict(name="vit", **FIELDS), seeds=1, total_steps=0)
    write_run(tmp_path / "run", config, variables)
    there = tmp_path / "there"
    assert command(f"--from={tmp_path}/run", f"--to=transformers:{there}") == 0
    assert read_json(there / "config.json")["num_channels"] == 1
    assert read_json(there / "preprocessor_config.json")["image_mean"] == [0.5]
    assert command(f"--from=transformers:{there}", f"--to={tmp_path}/back") == 0
    same(loaded(tmp_path / "back")[1], variables)
    with pytest.raises(InputError, match=r"projection\.weight must have .*got \(8, 1, 4, 4\)"):
        weights.load(there, model, (8, 8, 3))


def test_a_preset_of_another_size(tmp_path, monkeypatch):
    """The positions of weights are resized to what the preset, or --size, wants."""
    small = presets.Preset(presets.MODULES["vit"], FIELDS)
    monkeypatch.setitem(presets.PRESETS, "small", small)
    monkeypatch.setitem(presets.PRESETS, "small_16", presets.dataclasses.replace(small, size=16))
    path = save(tmp_path / "vit", presets.make("small", 3))
    for name, flags, size in (
        ("small", (), 8), ("small_16", (), 16), ("small", ("--size=12",), 12)
    ):  # fmt: skip
        to = tmp_path / f"{name}_{size}"
        flags = (f"--model={name}", "--pixels=imagenet", *flags)
        assert command(f"--from=timm:{path}", f"--to={to}", *flags) == 0
        model, variables = loaded(to)
        assert variables["params"]["positions"].shape == (1, 1 + (size // 4) ** 2, 8)
        assert model.pixels == "imagenet"
        fields = {"size": size, "crop_ratio": 0.875, "resize": "pil_bicubic"}
        assert read_json(to / "config.json")["evaluation"] == fields


def test_a_new_head(vit, tmp_path, monkeypatch):
    model, path = vit
    monkeypatch.setitem(presets.PRESETS, "small", presets.Preset(type(model), FIELDS))
    flags = ("--model=small", "--pixels=plain", "--num_classes=7")
    assert command(f"--from=timm:{path}", f"--to={tmp_path}/new", *flags) == 0
    _, variables = loaded(tmp_path / "new")
    head = variables["params"].pop("head")
    assert head["kernel"].shape == (8, 7) and not head["kernel"].any() and not head["bias"].any()
    old = weights.load(path, model, (8, 8, 3))
    del old["params"]["head"]
    same(variables, old)


def test_a_base_model_of_transformers(tmp_path):
    """Its names have no prefix, and it has a pooler instead of a head."""
    model = presets.make("vit", 3, **FIELDS)
    path = save(tmp_path / "vit", model, layout="transformers")
    tensors = safetensors.numpy.load_file(path)
    base = {name.removeprefix("vit."): tensor for name, tensor in tensors.items()}
    for part in ("weight", "bias"):
        base[f"pooler.dense.{part}"] = base.pop(f"classifier.{part}")
    safetensors.numpy.save_file(base, path)
    full = draw(model, 8)
    imported = weights.load(path, model, (8, 8, 3), new_head=True)
    assert not imported["params"].pop("head")["kernel"].any()
    del full["params"]["head"]
    same(imported, full)
    with pytest.raises(InputError, match=r"the tensor vit\.classifier|the tensor classifier"):
        weights.load(path, model, (8, 8, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"blocks.0.norm1.weight": None},
            r"the tensor blocks\.0\.norm1\.weight of the model is missing",
        ),
        ({"blocks.0.ls1.gamma": np.ones(8)}, r"no tensor blocks\.0\.ls1\.gamma \(1 too many\)"),
        (
            {"blocks.0.attn.qkv.bias": np.ones(23)},
            r"blocks\.0\.attn\.qkv\.bias must have the shape \(24,\) of the model, got \(23,\)",
        ),
        (
            {"head.bias": np.ones(4)},
            r"head\.bias must have the shape .* got \(4,\); .*or a new head",
        ),
        ({"pos_embed": np.ones((1, 4, 8))}, "positions must be a square number .*, got 4"),
        (
            {"pos_embed": np.ones((1, 5, 4))},
            r"pos_embed must have the shape \(1, 5, 8\) of the model, got \(1, 5, 4\)",
        ),
        ({"head.bias": np.array([0, 1, np.nan])}, r"the tensor head\.bias has NaN or infinity"),
        (
            {"head.bias": np.ones(3, np.int32)},
            r"the dtype of head\.bias must be .*got I32; save it as",
        ),
    ],
)
def test_files_that_do_not_fit(changes, message, tmp_path):
    model = presets.make("vit", 3, **FIELDS)
    path = save(tmp_path / "vit", model, **changes)
    with pytest.raises(InputError, match=message) as raised:
        weights.load(path, model, (8, 8, 3))
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_model_without_rules_is_said_in_one_line(tmp_path, capsys):
    """As timm's ResNet-RS, whose first convolution has the name of torchvision's stem."""
    tensors = {"conv1.0.weight": np.ones((2, 3, 3, 3)), "fc.bias": np.ones(3)}
    safetensors.numpy.save_file(tensors, tmp_path / "rs.safetensors")
    flags = ("--model=resnet_rs_50", "--pixels=imagenet")
    assert command(f"--from=timm:{tmp_path}/rs.safetensors", f"--to={tmp_path}/run", *flags) == 2
    assert "cannot hold a model with squeeze-and-excitation" in one_line(capsys)


def test_half_precision_becomes_float32(vit):
    model, path = vit
    tensors = safetensors.numpy.load_file(path)
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(half, path)
    kernel = weights.load(path, model, (8, 8, 3))["params"]["block_0"]["query"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, half["blocks.0.attn.qkv.weight"][:8].T)


def test_fixed_positions_are_looked_at(tmp_path):
    fields = FIELDS | dict(pool="mean", positions="sincos")
    model = presets.make("vit", 3, **fields)
    path = save(tmp_path / "vit", model)
    # Weights for images of any size; the file has those of 8 pixels.
    same(weights.load(path, model, (16, 16, 3)), draw(model, 16))
    path = save(tmp_path / "other", model, pos_embed=np.zeros((1, 4, 8)))
    with pytest.raises(InputError, match="pos_embed must be the model's fixed positions"):
        weights.load(path, model, (8, 8, 3))


@pytest.mark.parametrize(
    ("module", "fields", "layout", "message"),
    [
        (
            "vit",
            dict(layer_scale=0.1),
            "transformers",
            "the transformers layout cannot hold a model with this pooling",
        ),
        (
            "vit",
            dict(distillation="token"),
            "timm",
            "cannot hold a model with a distillation token",
        ),
        ("vit", {}, "torchvision", "cannot hold a model with a vision transformer"),
        ("resnet", dict(small_stem=True), "torchvision", "a stem for small images"),
        ("resnet", dict(auxiliary_batch_norm=True), "timm", "batch norms for synthetic images"),
        ("resnet_rs", {}, "timm", "squeeze-and-excitation"),
    ],
)
def test_layouts_without_the_model(module, fields, layout, message, tmp_path):
    model = presets.make(module, 3, **(FIELDS if module == "vit" else TINY_RESNET) | fields)
    with pytest.raises(InputError, match=message):
        weights.save(tmp_path, draw(model, 8), model, (8, 8, 3), layout)
    assert not list(tmp_path.iterdir())


def test_other_files(tmp_path):
    model = presets.make("vit", 3, **FIELDS)
    (tmp_path / "empty").mkdir()
    safetensors.numpy.save_file({"down.weight": np.ones(3)}, tmp_path / "unet.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x80" + bytes(10))
    for name, message in (
        ("none", "no such file or folder"),
        ("empty", "has no weights"),
        ("unet.safetensors", r"down\.weight and the other names match none of the known layouts"),
        ("cut.safetensors", "is not a complete safetensors file"),
    ):
        with pytest.raises(InputError, match=message):
            weights.load(tmp_path / name, model, (8, 8, 3))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "--from is missing"),
        (("--from=timm:x",), "--to is missing"),
        (("--from=timm:x", "--to=timm:y"), "one of --from and --to must begin with a layout"),
        (("--from=x", "--to=y"), "one of --from and --to must begin with a layout"),
        (("--from=x", "--to=timm:y", "--model=vit_b16"), "--model is for imports"),
        (("--from=timm:x", "--to=y", "--seed=1"), "--seed is for exports"),
        (("--from=timm:x", "--to=y", "--size=big"), "command line: "),
        (("--from=timm:x", "--to=y", "more"), "'more' is not a flag"),
        (("--from=timm:none", "--to=y"), "no such file or folder"),
        (("--from=timm:vit", "--to=y"), "has no model of transformers; set one with --model"),
        (("--from=timm:vit", "--to=y", "--model=vit_b16"), "pass --pixels"),
        (("--from=timm:vit", "--to=vit", "--model=vit_b16"), "must be an empty folder"),
        (("--from=timm:vit", "--to=y[1]", "--model=vit_b16"), "under a path with '['"),
        (("--from=transformers:vit", "--to=y"), "vit has timm weights"),
        (("--from=none", "--to=timm:y"), "none is not a run"),
        (("--from=x", "--to=timm:y.safetensors"), "--to must be a folder, got y.safetensors; pass"),
        (("--from=timm:vit", "--to=y.pth", "--model=vit_b16"), "must be a folder, got y.pth"),
        (("--from=vit", "--to=timm:gs://y"), "--to must be a local folder"),
    ],
)
def test_wrong_commands(vit, argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(*argv) == 2
    assert message in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


def test_help(capsys):
    assert command("--help") == 0
    assert "--pixels: import: plain or imagenet" in capsys.readouterr().out


@pytest.mark.slow
def test_a_trained_run_is_exported(tmp_path, monkeypatch, request, capsys):
    """And its import is evaluated as the run is."""
    monkeypatch.chdir(request.config.rootpath)
    runs = tmp_path / "runs"
    fields = [f"--config.model={dict(name='vit', **FIELDS)}"]
    argv = ("--config.total_steps=2", "--config.log_every=1", "--config.batch_size=16")
    config = "classifier.py:arm=real,runlocal"
    assert run_task(train.main, config, runs / "ours", *fields, *argv) == 0
    capsys.readouterr()
    there = f"transformers:{tmp_path}/there"
    assert command(f"--from={runs}/ours", f"--to={there}", "--seed=2") == 2
    assert "--seed must be from 0 to 1" in one_line(capsys)
    assert command(f"--from={runs}/ours", f"--to={there}", "--seed=1") == 0
    assert command(f"--from={there}", f"--to={runs}/back") == 0
    back = Run.open(runs / "back")
    fields = {"size": 8, "crop_ratio": 1.0, "resize": "pil_bilinear"}
    assert back.config.evaluation.to_dict() == fields
    variables = back.seeds[0].variables(back.seeds[0].shapes())
    back.path.rmtree()
    write_run(back.path, back.config.to_dict() | {"evaluation": None}, variables)
    assert run_task(evaluate.main, "evaluate.py:split=validation", runs) == 0
    arms = read_json(runs / "evaluation_validation.json")["arms"]
    assert arms["back"]["accuracies"] == arms["ours"]["accuracies"][1:]
