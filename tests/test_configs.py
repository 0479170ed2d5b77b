"""Every config loads, and its networks' shapes resolve without weights."""

import importlib
import json
import math
import re
import zipfile
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from classifiers import evaluate, label_maps, recipes
from configs import arguments
from imagen_ft import class_names
from input_pipeline import subsets
from input_pipeline.imagenet import wordnet_ids
from tests import commands
from tests.classifiers.evaluation import tiny

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").glob("*/*.py")
    if "def get_config(" in path.read_text()
)
# The papers' numbers: steps, optimiser, parameters, pixels, low-resolution pixels, crops.
IMAGENET = {
    "imagen_base64": (210_000, "adafactor", 2.0e9, 64, 0, 0),
    "imagen_sr256": (490_000, "adam", 600e6, 256, 64, 0),
    "imagen_sr1024": (2_500_000, "adam", 400e6, 1024, 256, 256),
    "if_i_l": (210_000, "adafactor", 935e6, 64, 0, 0),
    "if_i_xl": (210_000, "adafactor", 4305e6, 64, 0, 0),
    "if_ii_l": (490_000, "adam", 1243e6, 256, 64, 0),
}
PARAMETERS = {f"configs/imagenet/{name}.py": row[2] for name, row in IMAGENET.items()}
# Epochs, batch, optimiser, its rate and decay, pixels, parameters (Azizi et al. 2023, table 3, but
# for ResNet-50, where that gives RS-50's; "Diversify, Don't Fine-Tune", 2023, tables 5 and 6).
RECIPES = {
    "cas_resnet50": (90, 1024, "sgd", 0.4, 1e-4, 224, 25.6e6),
    "resnet50": (130, 4096, "sgd", 1.6, 1e-4, 224, 25.6e6),
    "resnet101": (130, 4096, "sgd", 1.6, 1e-4, 224, 45e6),
    "resnet152": (130, 4096, "sgd", 1.6, 1e-4, 224, 60e6),
    "resnet_rs50_160": (350, 4096, "sgd", 1.6, 4e-5, 160, 36e6),
    "resnet_rs101_160": (350, 4096, "sgd", 1.6, 4e-5, 160, 64e6),
    "resnet_rs101_192": (350, 4096, "sgd", 1.6, 4e-5, 192, 64e6),
    "resnet_rs152_224": (350, 4096, "sgd", 1.6, 4e-5, 224, 87e6),
    "vit_s16": (300, 1024, "adamw", 1e-3, 0.1, 224, 22e6),
    "deit_s": (300, 1024, "adamw", 1e-3, 0.05, 224, 22e6),
    "deit_b": (300, 1024, "adamw", 1e-3, 0.05, 224, 86e6),
    "deit_b_384": (30, 512, "adamw", 5e-6, 1e-8, 384, 86e6),
    "deit_l": (300, 2048, "lamb", 3e-3, 0.05, 192, 307e6),
}
RECIPE_FILES = [f"configs/imagenet/{name}.py" for name in RECIPES]
# Arguments that change which data a config names.
VARIANTS = {
    "configs/digits/classifier.py": [
        "arm=pool",
        "arm=generated,k=30",
        "arm=real+generated,k=1",
        "arm=real+generated,k=10,runlocal",
    ],
    "configs/digits/evaluate.py": ["split=validation"],
    "configs/digits/study.py": ["generated=x"],
    "configs/cifar10/study.py": ["data=x.zip", "generated=x"],
    "configs/imagenet/study.py": ["data=x.zip", "generated=x", "seeds=3"],
    "configs/cifar10/evaluate.py": ["data=cifar10,root=", "data=cifar10.zip,root=a/b,runlocal"],
    "configs/imagenet/evaluate.py": ["sets=val+r", "data=x.zip", "shifts=/x", "gamma=50,train=a"],
    "configs/cifar10/finetune_base16.py": ["data=cifar10,root=", "data=cifar10.zip,root=a/b"],
    "configs/cifar10/finetune_sr32.py": ["data=cifar10,root=,runlocal"],
    **{path: ["host", "data=imagenet.zip,train=a,val=b"] for path in PARAMETERS},
    **{path: ["arm=real+generated,k=3", "arm=generated,generated=x"] for path in RECIPE_FILES},
    "configs/imagenet/resnet50.py": [
        "arm=real+generated,same_steps",
        "batch=1024",
        "val=validation",
    ],
}
FINETUNE = "imagen_ft.finetune"
# Tasks that compare what was trained: they may look at the test images.
COMPARISONS = ("classifiers.evaluate", "classifiers.study")


def load(path):
    return importlib.import_module(path.removesuffix(".py").replace("/", "."))


def command(path):
    """The task's module and the config's path, from the command line that heads the file."""
    found = re.match(r".*?\n\npython -m (\S+) --config=([\w/.]+)", load(path).__doc__, re.S)
    assert found, f"{path} does not begin with its command line"
    return found.groups()


def dry_run(path, argument, capsys):
    """What the task prints: its config, and the number of parameters of each network."""
    task = importlib.import_module(command(path)[0])
    config = path + (f":{argument}" if argument else "")
    code = commands.run(task.main, config, None, "--dry_run")
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    resolved, end = json.JSONDecoder().raw_decode(out)
    counts = re.findall(r"^(\w+): ([\d,]+) parameters$", out[end:], re.M)
    counts = {name: int(count.replace(",", "")) for name, count in counts}
    if not counts:
        assert task.__name__ == "classifiers.evaluate" and "no parameters to count" in out
    return resolved, counts


def leaves(tree):
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(value)
    else:
        yield tree


def test_there_are_configs():
    assert len(CONFIGS) >= 8


@pytest.mark.parametrize("path", CONFIGS)
def test_it_begins_with_its_command_line(path):
    task, named = command(path)
    assert named == path
    assert callable(importlib.import_module(task).main)


@pytest.mark.parametrize("path", CONFIGS)
def test_its_networks_resolve(path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    resolved, counts = dry_run(path, "", capsys)
    smaller, smaller_counts = dry_run(path, "runlocal", capsys)
    assert resolved == json.loads(load(path).get_config("").to_json())
    assert smaller == json.loads(load(path).get_config("runlocal").to_json())
    if "cache" in resolved.get("text", ()) and "cache" not in smaller["text"]:
        # A glance embeds the prompts that elsewhere come from a cache.
        assert "text_encoder" not in counts
        counts["text_encoder"] = smaller_counts["text_encoder"]
    # A glance may leave stages of a cascade out.
    assert smaller_counts.keys() <= counts.keys() and len(smaller_counts) >= min(2, len(counts))
    for count in (*counts.values(), *smaller_counts.values()):
        assert count > 1000
    if path in PARAMETERS:
        assert counts["unet"] == pytest.approx(PARAMETERS[path], rel=0.06)
    if path in RECIPE_FILES:
        assert counts["model"] == pytest.approx(RECIPES[Path(path).stem][-1], rel=0.02)
    if command(path)[0] != "classifiers.evaluate":
        # runlocal is for a glance: never more, and something less.
        assert resolved != smaller


@pytest.mark.parametrize("path", [path for path in CONFIGS if command(path)[0] not in COMPARISONS])
def test_only_the_last_comparison_sees_the_test_images(path):
    for argument in ("", "runlocal", *VARIANTS.get(path, ())):
        config = json.loads(load(path).get_config(argument).to_json())
        found = [leaf for leaf in leaves(config) if re.search(r"(^|/)test$", str(leaf))]
        assert not found, argument


@pytest.mark.parametrize(
    ("path", "argument"), [(path, argument) for path in VARIANTS for argument in VARIANTS[path]]
)
def test_arguments(path, argument):
    default, found = (json.loads(load(path).get_config(a).to_json()) for a in ("", argument))
    assert found != default and found.keys() == default.keys()


@pytest.mark.parametrize("path", CONFIGS)
def test_unknown_arguments(path):
    with pytest.raises(ValueError, match="there is no argument 'quickly'"):
        load(path).get_config("quickly")


def test_arms_of_the_classifiers():
    get_config = load("configs/digits/classifier.py").get_config
    real, fake = dict(name="digits", split="train"), "runs/digits/generated"
    assert get_config("").train_sources.to_dict() == {"real": real}
    assert get_config("arm=pool").train_sources.real.split == "pool"
    mixed = get_config("arm=real+generated,k=10").train_sources.to_dict()
    assert mixed == {"real": real, "generated": dict(name="synthetic", path=fake, copies=10)}
    assert list(get_config("arm=generated").train_sources) == ["generated"]
    with pytest.raises(ValueError, match="arm=fake: there is real, generated"):
        get_config("arm=fake")


@pytest.mark.parametrize("name", IMAGENET)
def test_the_papers_numbers(name):
    steps, optimizer, _, size, low_size, crop = IMAGENET[name]
    public = name.startswith("if_")
    config = load(f"configs/imagenet/{name}.py").get_config()
    # Azizi et al. 2023, section 3; Saharia et al. 2022, appendix.
    assert (config.total_steps, config.optimizer.name) == (steps, optimizer)
    assert (config.batch_size, config.accumulation, config.text_drop) == (2048, 1, 0.1)
    assert (config.optimizer.learning_rate, config.optimizer.warmup_steps) == (1e-4, 10_000)
    assert (config.optimizer.schedule, config.optimizer.weight_decay) == ("constant", 0.0)
    if optimizer == "adam":
        moments = config.optimizer.b1, config.optimizer.b2, config.optimizer.eps
        assert moments == (0.9, 0.999, 1e-8)
    assert config.ema.main.decay == 0.9999 and config.stage.prediction == "eps"
    stage = config.stage
    assert (stage.size, stage.low_size, config.crop_size) == (size, low_size, crop)
    schedule = "linear" if size == 1024 else "cosine"
    assert stage.schedule == ("squaredcos_cap_v2" if public else schedule)
    # DeepFloyd IF learns its variance (Nichol & Dhariwal 2021, section 3.1: lambda = 0.001).
    assert stage.learned_variance == public and config.loss.vlb_weight == 0.001 * public
    assert stage.upsampling == ("bilinear_corners" if public else "bilinear")
    assert config.init_from == ("weights/" + name.replace("_", "-").upper() if public else "")
    assert config.text.null == ("empty" if public else "zeros")
    assert config.text.shape == ((77 if public else 128), 4096)
    assert stage.unet.preset == name and stage.unet.dtype == "bfloat16"


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_numbers(name):
    epochs, batch, optimizer, rate, decay, size, _ = RECIPES[name]
    get_config = load(f"configs/imagenet/{name}.py").get_config
    config, images = get_config(), 1_281_167
    assert config.total_steps == round(epochs * images / batch) and config.batch_size == batch
    found = config.optimizer
    assert (found.name, found.learning_rate, found.weight_decay) == (optimizer, rate, decay)
    assert config.evaluation.size == (config.augment or config.evaluation).size == size
    assert config.model.dtype == "bfloat16" and config.num_classes == 1000
    deit, rs = name.startswith("deit"), name.startswith("resnet_rs")
    plain = name in ("cas_resnet50", "vit_s16")
    assert config.label_smoothing == (0.0 if plain else 0.1)
    mix = dict(mixup=0.8, cutmix=1.0) if deit else dict(mixup=0.2) if name == "vit_s16" else {}
    assert config.mix.to_dict() == mix
    averaged = 0.9999 if rs else 0.99996 if name in ("deit_s", "deit_b") else None
    assert (config.ema.main.decay if config.ema else None) == averaged
    repeated = deit and name != "deit_l"
    assert config.repeats == (3 if repeated else 1)
    assert config.augment.get("erasing", 0) == (0.25 if repeated else 0)
    assert found.clip_norm == (1.0 if name == "vit_s16" else 0.0)
    if name == "cas_resnet50":
        assert found.nesterov and found.schedule == "step" and not config.augment
        drops = [round(30 * n * images / batch) for n in (1, 2)] + [round(80 * images / batch)]
        assert list(found.boundaries) == drops
    else:
        assert found.schedule == ("constant" if name == "deit_b_384" else "cosine")
        strong = name in ("resnet_rs101_192", "resnet_rs152_224")
        magnitude = 9 if deit else 15 if strong else 10
        rand = config.augment.randaugment
        assert (rand.layers, rand.magnitude) == (2, magnitude)
    warmup = {"vit_s16": 10_000, "deit_b_384": 0}.get(name, round(5 * images / batch))
    assert found.warmup_steps == warmup
    # An epoch of a mixture is longer; the warm-up is not.
    mixed = get_config("arm=real+generated,k=3")
    assert mixed.total_steps == round(4 * epochs * images / batch)
    assert mixed.optimizer.warmup_steps == warmup
    assert get_config("arm=real+generated,k=3,same_steps").total_steps == config.total_steps
    assert get_config("arm=generated,k=2").total_steps == round(2 * epochs * images / batch)
    half = get_config(f"batch={batch // 2}")
    assert half.optimizer.learning_rate == rate / 2 and half.batch_size == batch // 2
    assert half.optimizer.warmup_steps == pytest.approx(2 * warmup, abs=1)
    for arm in ("real", "generated", "real+generated"):
        start = f"runs/imagenet/deit_b/{arm}" if name == "deit_b_384" else ""
        assert get_config(f"arm={arm}").init_from == start


def test_few_and_unequal_images_to_train_on():
    get_config = load("configs/imagenet/resnet50.py").get_config
    config = get_config("per_class=100,epochs=100,batch=2048")
    assert config.train_sources.real.per_class == 100
    assert config.total_steps == round(100 * 100_000 / 2048)
    mixed = get_config("arm=real+generated,k=2,per_class=100,epochs=100")
    assert mixed.total_steps == round(100 * (100_000 + 2 * 1_281_167) / 4096)
    config = get_config("gamma=50,epochs=100")
    assert config.train_sources.real.long_tail.to_dict() == dict(n_max=1300, gamma=50)
    images = int(subsets.long_tail_counts(1000, 1300, 50).sum())
    assert config.total_steps == round(100 * images / 4096)


@pytest.mark.parametrize("name", IMAGENET)
@pytest.mark.parametrize(("argument", "devices"), [("", 256), ("host", 8), ("runlocal", 1)])
def test_batches_fit_the_hardware(name, argument, devices):
    config = load(f"configs/imagenet/{name}.py").get_config(argument)
    sizes = [size for size in config.mesh.values() if size != -1]
    assert devices % math.prod(sizes) == 0
    assert config.batch_size % (config.accumulation * devices) == 0
    assert config.evaluation_batch_size % devices == 0


def test_imagenet_sources():
    get_config = load("configs/imagenet/if_i_l.py").get_config
    config = get_config("data=x.zip,train=a/b,val=c")
    assert (config.train_source.path, config.train_source.root) == ("x.zip", "a/b")
    assert (config.evaluation_source.path, config.evaluation_source.root) == ("x.zip", "c")
    config = get_config("runlocal")
    assert config.init_from == "" and "cache" not in config.text
    assert config.train_source == get_config().train_source


def test_the_longest_name_fits_the_embedded_encoder():
    for group, names in (("cifar10", None), ("imagenet", class_names.load("imagenet"))):
        common = load(f"configs/{group}/common.py")
        text = common.TEXT if group == "cifar10" else common.LOCAL_TEXT
        longest = max(len(name.encode()) for name in names or common.CLASS_NAMES)
        assert text["max_length"] == longest + 1


def test_sets_of_the_imagenet_evaluation():
    get_config = load("configs/imagenet/evaluate.py").get_config
    sets = get_config("").sets
    assert sorted(sets) == ["a", "objectnet", "r", "sketch", "v2", "val"]
    assert {found.label_map for found in sets.values()} == {"", *label_maps.MAPS}
    assert all(found.prepare for found in sets.values())
    assert sorted(get_config("sets=r+a").sets) == ["a", "r"]
    assert list(get_config("runlocal").sets) == ["val"]
    assert get_config("sets=r").attacks.to_dict() == {}
    with pytest.raises(ValueError, match="there is no 'w2', but val"):
        get_config("sets=val+w2")
    config = get_config("data=x.zip,val=a,train=b,shifts=/y,gamma=100")
    assert (config.sets.val.source.path, config.sets.val.source.root) == ("x.zip", "a")
    assert config.sets.r.source.path == "/y/imagenet-r"
    assert config.shots.source.root == "b" and (config.shots.many, config.shots.few) == (800, 300)
    assert config.shots.source.long_tail.to_dict() == dict(n_max=1300, gamma=100)


def test_cifar10_samples_what_was_trained():
    for argument in ("", "runlocal"):
        stages = load("configs/cifar10/sample.py").get_config(argument).stages
        for name, stage in stages.items():
            path = f"configs/cifar10/finetune_{name}.py"
            trained = load(path).get_config(argument)
            assert trained.stage == stage.stage and stage.run == f"runs/cifar10/{name}"
            assert f"--workdir={stage.run}" in load(path).__doc__
            assert trained.text == load("configs/cifar10/sample.py").get_config(argument).text


def encoded(image):
    return cv2.imencode(".png", image)[1].tobytes()


def image_zip(path, folders, per_class):
    """Images of random colours, in these folders of a zip."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for folder in folders:
            for i in range(per_class):
                image = np.full((40, 50, 3), rng.integers(0, 256, 3), np.uint8)
                archive.writestr(f"{folder}/{i}.png", encoded(image))
    return path


@pytest.mark.parametrize(
    ("group", "arguments", "size"),
    [("cifar10", "root=set", 10), ("imagenet", "val=set/test", 1000)],
)
def test_runlocal_evaluates_on_a_cpu(group, arguments, size, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    classes = wordnet_ids() if size == 1000 else load("configs/cifar10/common.py").CLASS_NAMES
    folders = [f"set/test/{name}" for name in classes]
    data = image_zip(tmp_path / "data.zip", folders, per_class=1 if size == 1000 else 8)
    fields = dict(name="resnet", stage_sizes=(1,), width=4, small_stem=True, dtype="float32")
    model = recipes.make_model(ConfigDict(fields), size)
    variables = recipes.init_model(model, jax.random.key(0), (16, 16, 3))
    head = jax.tree.map(np.zeros_like, variables["params"]["head"])
    variables = {**variables, "params": {**variables["params"], "head": head}}
    tiny.write_run(tmp_path / "run", variables, model=fields, evaluation=dict(size=16))
    config = f"configs/{group}/evaluate.py:runlocal,data={data},{arguments}"
    assert commands.run(evaluate.main, config, tmp_path / "run") == 0
    (path,) = (tmp_path / "run").glob("evaluation_*.json")
    found = json.loads(path.read_text())
    assert found["num_images"] == (80 if size == 10 else 1000)
    (arm,) = found["arms"].values()
    # With a head of zeros it always says the first class.
    assert arm["accuracies"] == [1 / size] and arm["loss"] == [pytest.approx(math.log(size))]
    assert arm["attacks"] and arm["calibration_error"] == [pytest.approx(0, abs=1e-6)]


def starts(path, argument, workdir, *overrides):
    """Trains with `runlocal`; the run's last metrics."""
    task = importlib.import_module(command(path)[0])
    assert commands.run(task.main, f"{path}:runlocal,{argument}", workdir, *overrides) == 0
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.mark.slow  # Compiles a step, an evaluation and a sampler of eight networks: 3 minutes.
@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if command(path)[0] == FINETUNE and "digits" not in path]
)
def test_runlocal_starts_on_a_cpu(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    imagenet = path.startswith("configs/imagenet")
    classes = wordnet_ids() if imagenet else load("configs/cifar10/common.py").CLASS_NAMES
    folders = [f"set/train/{name}" for name in classes]
    data = image_zip(tmp_path / "data.zip", folders, per_class=1 if imagenet else 60)
    roots = "train=set/train,val=set/train" if imagenet else "root=set"
    config = load(path).get_config(f"runlocal,{roots}")
    metrics = starts(path, f"data={data},{roots}", tmp_path / "run")
    assert metrics["step"] == config.total_steps
    assert 0 < metrics["loss"] < 20 and 0 < metrics["validation_loss"] < 20
    assert (tmp_path / f"run/pictures/step_{config.total_steps}.png").exists()


def test_argument_types():
    def parse(text):
        return arguments.parse(text, arm="real", k=30, rate=0.5, runlocal=False)

    default = dict(arm="real", k=30, rate=0.5, runlocal=False)
    assert parse("") == parse(None) == default
    found = parse("k=7,arm=a=b,runlocal,rate=1e-3")
    assert found == dict(arm="a=b", k=7, rate=1e-3, runlocal=True)
    assert type(found["k"]) is int
    assert parse("runlocal=False") == default and parse("runlocal=True")["runlocal"]
    for text, said in (
        ("k=many", "'k=many': the value is not of type int"),
        ("k", "'k': the value is not of type int"),
        ("rate=x", "not of type float"),
        ("runlocal=yes", "'runlocal=yes': True or False is needed"),
        ("size=3", r"no argument 'size' \(there is: arm, k, rate, runlocal\)"),
    ):
        with pytest.raises(ValueError, match=said):
            parse(text)
