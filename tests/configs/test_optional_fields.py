"""Every option of the code is reachable: it is in a config, or in a task's table of what may be."""

import ast
import dataclasses
import functools
import importlib
import shlex

import pytest
from ml_collections import ConfigDict

from classifiers.models.resnet import ResNet
from classifiers.models.vit import ViT
from imagen_ft.diffusion.ddpm import DDPM
from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.losses import DiffusionLoss
from imagen_ft.diffusion.sampler_from_config import SAMPLERS
from imagen_ft.diffusion.stage import Stage
from imagen_ft.models.efficient_unet import EfficientUNet
from imagen_ft.models.t5 import T5Encoder
from imagen_ft.models.unet import UNet
from imagen_ft.text.encoders import lacking_in_text
from input_pipeline.sources import subsets
from input_pipeline.sources.lacking import lacking_in_source
from input_pipeline.sources.registry import KINDS
from launch.errors import InputError
from launch.runtime import app, optional_fields
from launch.runtime.config import plain
from launch.runtime.optional_fields import Mixed
from launch.runtime.training.optimizers import lacking_in_optimizer
from tests.configs.tables import CONFIGS, ROOT, command, load
from tests.support import commands

TASKS = ("imagen_ft.finetune", "imagen_ft.sample", "imagen_ft.generate", "imagen_ft.evaluate")
TASKS += (
    "imagen_ft.sweep",
    "imagen_ft.filter",
    "imagen_ft.worth",
    "classifiers.train",
    "classifiers.evaluate",
    "classifiers.study",
    "classifiers.train_clip",
    "classifiers.transfer",
    "classifiers.zero_shot",
)
# Files that others have written are read there, and no configs.
OTHER_FILES = ("imagen_ft/weights/", "classifiers/weights/", "input_pipeline/synthetic/")
# Of a task, what it imports and hands no config of its own, but those of runs and other tasks.
_CLASSIFIERS = ("classifiers/from_config.py", "classifiers/extractors/", "input_pipeline/augment/")
_OF_RUNS = ("imagen_ft/cascade/opened.py", "launch/runtime/layers/lora.py")
_NOISE_ALONE = "imagen_ft/cascade/starts.py"
OTHER_CONFIGS = {
    "imagen_ft.finetune": (*_CLASSIFIERS, "imagen_ft/cascade/", "imagen_ft/evaluation/"),
    "imagen_ft.sample": _OF_RUNS,
    "imagen_ft.generate": _OF_RUNS,
    "imagen_ft.evaluate": (*_CLASSIFIERS, *_OF_RUNS, _NOISE_ALONE),
    "imagen_ft.sweep": (*_CLASSIFIERS, *_OF_RUNS, _NOISE_ALONE),
    "imagen_ft.filter": (  # It draws nothing.
        *(*_CLASSIFIERS, "imagen_ft/cascade/", "imagen_ft/diffusion/", "imagen_ft/evaluation/"),
        *("imagen_ft/text/", "launch/runtime/"),
    ),
    "imagen_ft.worth": (  # Its jobs have them.
        *("classifiers/", "imagen_ft/cascade/", "imagen_ft/diffusion/", "imagen_ft/evaluation/"),
        *("imagen_ft/generate.py", "imagen_ft/generation/", "imagen_ft/text/", "input_pipeline/"),
        "launch/",
    ),
    "classifiers.train": (),
    "classifiers.train_clip": ("classifiers/extractors/", "classifiers/from_config.py"),
    "classifiers.evaluate": (*_CLASSIFIERS, "launch/"),
    "classifiers.transfer": (*_CLASSIFIERS, "launch/"),
    "classifiers.zero_shot": (*_CLASSIFIERS, "launch/"),
    "classifiers.study": (  # Its jobs have them.
        *(*_CLASSIFIERS, "classifiers/train.py", "classifiers/training/"),
        *("input_pipeline/", "launch/"),
    ),
}
# Fields of other tasks, in files that serve several; and in sections whose names are free, or that
# the stages of a config leave no place for.
OTHER_FIELDS = {
    "imagen_ft.finetune": {"guide"},
    "imagen_ft.sample": {"mesh"},
    "imagen_ft.evaluate": {"low"},
    "imagen_ft.sweep": {"environment", "write"},
    "classifiers.train": {"evaluation_metric", "every"},
    "classifiers.train_clip": {"evaluation_metric", "every"},
    "classifiers.evaluate": {"kind"},
}
ROOMS = ("imagen_ft", "classifiers", "input_pipeline", "launch")
# Arguments with which a config has all sections that its task has use for.
WHOLE = {
    "configs/digits/evaluate_images.py": "sampled=9,enlarged=9",
    "configs/imagenet/evaluate_images.py": "sampled=9",
}
# What code calls the configs and their sections.
NAMES = {"config", "spec", "entry", "fields", "window", "profile"}


@functools.cache
def parsed(file):
    """The modules of ours that a file imports, and the fields that it reads with a default."""
    modules, fields = set(), set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                modules |= {module, *(f"{module}.{alias.name}" for alias in names)}
            case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(name)), *_]):
                called = _called(node.func.value)
                if NAMES & called and not {"run", "_run"} & called:
                    fields.add(name)
    return {module for module in modules if module.split(".")[0] in ROOMS}, fields


def options_read(task):
    """By file that a task imports, itself and directly or not, the fields that it reads."""
    read, waiting, seen = {}, [task], set()
    while waiting:
        module = waiting.pop()
        path = ROOT / module.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module not in seen and path.exists():
            file = path.relative_to(ROOT).as_posix()
            modules, read[file] = parsed(file)
            waiting += modules
        seen.add(module)
    return read


def _called(value):
    """What code calls the value that an expression gives."""
    match value:
        case ast.Name(id=name):
            return {name}
        case ast.Attribute(value=inner, attr=name):
            return {name} | _called(inner)
        case ast.BoolOp(values=[inner, *_]) | ast.Subscript(value=inner):
            return _called(inner)
        case ast.Call(func=ast.Attribute(attr="get", value=inner)):
            return _called(inner)
    return set()


def lacking_of(path, argument=None):
    task = importlib.import_module(command(path)[0])
    config = load(path).get_config(*([argument] if argument else []))
    return task.lacking(config) if hasattr(task, "lacking") else {}


def reachable(path, argument):
    """The names of all fields that a config has, or that its task lets be set."""
    config = load(path).get_config(*([argument] if argument else []))
    fields = set(importlib.import_module(command(path)[0]).lacking(config))
    names = set(_names(config.to_dict()))
    # Of kinds that this config has not.
    if any(field.endswith((".subset_seed", "start.name")) for field in fields):
        fields |= {x for name in KINDS for x in lacking_in_source("", {"name": name})}
    if "text" in names:
        fields |= set(lacking_in_text(ConfigDict({"weights": ""})))
    if "optimizer" in names:
        fields |= set(lacking_in_optimizer(ConfigDict(dict(name="adam", schedule="step"))))
    return names | {part for field in fields for part in field.split(".")}


def _names(section):
    for name, value in section.items():
        yield name
        if isinstance(value, dict):
            yield from _names(value)


@pytest.mark.parametrize("task", TASKS)
def test_options_that_a_task_reads_can_be_set(task):
    others = (*OTHER_FILES, *OTHER_CONFIGS[task])
    read = {file: x for file, x in options_read(task).items() if not file.startswith(others)}
    assert len(set().union(*read.values())) > 1
    for path in (path for path in CONFIGS if command(path)[0] == task):
        reached = reachable(path, WHOLE.get(path)) | OTHER_FIELDS.get(task, set())
        hidden = {file: names - reached for file, names in read.items()}
        assert {file: names for file, names in hidden.items() if names} == {}, path


def test_all_tasks_are_looked_at():
    tasks = {command(path)[0] for path in CONFIGS}
    assert tasks == set(TASKS)
    for name in tasks:
        file = ROOT / f"{name.replace('.', '/')}.py"
        assert "lacking=lacking" in file.read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_a_source_can_be_set(kind):
    names = {path.partition(".")[0] for path in lacking_in_source("", {"name": kind})}
    expected = {KINDS[kind].needs, *KINDS[kind].may_have, *subsets.FIELDS, "on_damage"}
    assert names == expected
    assert set(lacking_in_source("start", {})) == {"start.name"}


STAGE, SR1024 = "stages.base4", "configs/imagenet/imagen_sr1024.py"
EVALUATE, SWEEP = "configs/digits/evaluate_images.py", "configs/digits/sweep.py"
SECTIONS = [
    (path, f"{prefix}{section}", kind)
    for path, prefix in (
        ("configs/digits/sample.py", ""),
        ("configs/digits/generate.py", ""),
        (f"{EVALUATE}:sampled=9", "sets.sampled.cascade."),
        (SWEEP, "cascade."),
    )
    for section, kind in (
        (STAGE, Stage),
        (f"{STAGE}.sampler", DDPM),
        (f"{STAGE}.stage", Denoiser),
        (f"{STAGE}.stage.unet", UNet),
        ("text.model", T5Encoder),
    )
] + [
    ("configs/digits/pretrain_base4.py", "stage", Denoiser),
    ("configs/digits/pretrain_base4.py", "stage.unet", UNet),
    ("configs/digits/pretrain_base4.py", "text.model", T5Encoder),
    ("configs/digits/pretrain_base4.py", "loss", DiffusionLoss),
    ("configs/digits/pretrain_base4.py", "pictures", Stage),
    (SR1024, "stage.unet", EfficientUNet),
    (SR1024, "evaluation_metric.sampling", Stage),
    ("configs/digits/classifier.py", "model", ResNet),
    ("configs/imagenet/vit_s16.py", "model", ViT),
]


@pytest.mark.parametrize(("file", "section", "kind"), SECTIONS)
def test_fields_of_classes_can_be_set(file, section, kind):
    path, _, argument = file.partition(":")
    config = load(path).get_config(*([argument] if argument else []))
    lacking = lacking_of(path, argument)
    inner = {"parent", "name", "denoiser", "guide", "sampler", "schedule", "model", "text_encoder"}
    # Those that the images, the text or the loss's own way decide.
    inner |= {"out_channels", "noise_level", "vocab_size", "num_classes", "autoencoder"}
    names = {field.name for field in dataclasses.fields(kind)} - inner
    paths = {f"{section}.{name}" for name in names}
    assert {x for x in paths if x not in lacking and not optional_fields.has(config, x)} == set()


@pytest.mark.parametrize("name", SAMPLERS)
def test_fields_of_a_sampler_can_be_set(name):
    config, section = load(SAMPLE).get_config(), f"{STAGE}.sampler"
    config.stages.base4.sampler = dict(name=name, num_steps=2, logvar_coeff=0.0, eta=0.0)
    lacking = importlib.import_module("imagen_ft.sample").lacking(config)
    paths = {f"{section}.{field.name}" for field in dataclasses.fields(SAMPLERS[name])}
    assert {x for x in paths if x not in lacking and not optional_fields.has(config, x)} == set()


@pytest.mark.parametrize("path", CONFIGS)
def test_nothing_changes_where_nothing_is_set(path):
    task = importlib.import_module(command(path)[0])
    if hasattr(task, "lacking"):
        config = load(path).get_config()
        there = [x for x in task.lacking(config).items() if optional_fields.has(config, x[0])]
        assert not [field for field, default in there if not isinstance(default, Mixed)]


SAMPLE, FINETUNE = "configs/digits/sample.py", "configs/digits/finetune_base4.py"
TRAIN = "configs/digits/classifier.py"
SET = [
    (SAMPLE, "stages.base4.guidance_interval=(0.2, 0.8)", (0.2, 0.8)),
    (SAMPLE, "stages.base4.sampler.spacing=leading", "leading"),
    (SAMPLE, "stages.base4.guide.ema=short", "short"),
    (FINETUNE, "stage.unet.remat=True", True),
    (FINETUNE, "train_source.per_class=2", 2),
    (FINETUNE, "optimizer.b2=0.95", 0.95),
    (FINETUNE, "lora.rank=8", 8),
    (FINETUNE, "lora.targets=('to_q',)", ("to_q",)),
    (SAMPLE, "stages.base4.lora=x.safetensors", "x.safetensors"),
    (FINETUNE, "best.metric=validation_loss", "validation_loss"),
    (TRAIN, "augment.randaugment.layers=2", 2),
    (TRAIN, "train_sources.real.classes=('one', 'two')", ("one", "two")),
    (SWEEP, "grid.eta=(0.0, 0.5)", (0.0, 0.5)),
    (SWEEP, "cascade.stages.base4.batch_size=4", 4),
    (f"{EVALUATE}:sampled=9", "sets.sampled.seed=3", 3),
    (EVALUATE, "reference.source.square=4", 4),
    ("configs/digits/study.py", "models.wide.init_from=resnet", "resnet"),
    # What may be of several types: as the command line has it, whatever the config or default.
    (FINETUNE, "stage.unet.layers_per_block=(2,)", (2,)),
    (FINETUNE, "stage.unet.attention_head_dim=(8,)", (8,)),
    (FINETUNE, "stage.unet.attention_head_dim=8", 8),
    (FINETUNE, "stage.unet.remat=(True,)", (True,)),
    ("configs/imagenet/if_ii_l.py", "stage.unet.layers_per_block=3", 3),
    (SAMPLE, "stages.base4.sampler.logvar_coeff=learned", "learned"),
    ("configs/deepfloyd/sample.py", "stages.base64.sampler.logvar_coeff=0.5", 0.5),
    (SAMPLE, "class_names=names.txt", "names.txt"),
    ("configs/imagenet/if_i_l.py", "class_names=('a', 'b')", ("a", "b")),
    ("configs/imagenet/resnet50.py", "augment.randaugment.fill=(1, 2, 3)", (1, 2, 3)),
]


def parse(path, *overrides):
    task = importlib.import_module(command(path.partition(":")[0])[0])
    argv = [f"--config={path}", "--dry_run", *(f"--config.{field}" for field in overrides)]
    return app.parse(["task", *argv], "", task.define_flags, task.lacking).config


@pytest.mark.parametrize(("path", "override", "expected"), SET)
def test_a_field_that_the_config_lacks_is_set(path, override, expected):
    value = parse(path, override)
    for name in override.partition("=")[0].split("."):
        value = value[name]
    assert value == expected


def test_a_source_that_the_config_lacks():
    """Its fields depend on its name, which is no field of the config either."""
    fields = ["path=a", "name=image_folder", "held_out=3", "split=train", "classes=('one',)"]
    config = parse(SAMPLE, *(f"start.{field}" for field in fields), "skip_steps=3")
    expected = dict(path="a", name="image_folder", held_out=3, split="train", classes=["one"])
    assert plain(config.start) == expected and config.skip_steps == 3
    with pytest.raises(InputError, match="the config has no field 'row_groups'"):
        parse(SAMPLE, *(f"start.{field}" for field in fields), "start.row_groups=3")
    assert "skip_steps" not in parse(SAMPLE, "skip_steps=0")


def test_which_fields_there_are_depends_on_the_others():
    overrides = ["optimizer.momentum=0.8", "optimizer.name=sgd"]
    assert parse(FINETUNE, *overrides).optimizer.momentum == 0.8
    with pytest.raises(InputError, match="the config has no field 'momentum'"):
        parse(FINETUNE, "optimizer.momentum=0.8")


@pytest.mark.parametrize("path", [SAMPLE, FINETUNE, TRAIN, "configs/digits/generate.py"])
def test_defaults_leave_a_config_as_it_is(path):
    config = load(path).get_config()
    lacked = optional_fields.text(lacking_of(path), config).splitlines()[1:]
    overrides = [shlex.split(line)[0].removeprefix("--config.") for line in lacked]
    overrides = [override for override in overrides if not override.endswith("=None")]
    assert len(overrides) > 5
    assert parse(path, *overrides).to_json() == parse(path).to_json()


def test_wrong_values_and_names_are_one_line(capsys):
    sample = importlib.import_module("imagen_ft.sample")
    for override, told in [
        (
            "stages.base4.guidance_interval=(0.8,0.2)",
            "guidance_interval must be two increasing numbers in [0, 1], got (0.8, 0.2)",
        ),
        ("stages.base4.batch_size=many", "batch_size"),
        (
            "stages.base4.guidance_intervals=(0,1)",
            "the config has no field 'guidance_intervals'",
        ),
        ("stages.base4.guidance_intervals=(0,1)", ", guidance_interval, guidance_rescale, "),
        (
            "stages.base4.guide.emas=a",
            "the config has no field 'emas'; use one of best, ema, lora, run, ",
        ),
        (
            "stages.base4.guide=a",
            "=a: this field is a group; set one of its fields: best, ema, lora, run, ",
        ),
    ]:
        assert commands.run(sample.main, SAMPLE, None, "--dry_run", f"--config.{override}") == 2
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == 1


def test_a_dry_run_shows_the_fields_that_are_not_set(capsys):
    sample = importlib.import_module("imagen_ft.sample")
    override = "--config.stages.base4.guidance_interval=(0.2,0.8)"
    assert commands.run(sample.main, SAMPLE, None, "--dry_run", override) == 0
    out = capsys.readouterr().out
    assert "'--config.stages.sr8.guidance_interval=(0.0, 1.0)'" in out
    assert "--config.stages.base4.guidance_interval=" not in out
    assert "--config.stages.base4.threshold_maximum=inf" in out
