"""Every option of the code is reachable: it is in a config, or in a task's table of what may be."""

import ast
import dataclasses
import importlib
import re
import shlex

import pytest
from ml_collections import ConfigDict

from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.losses import DiffusionLoss
from imagen_ft.diffusion.samplers import DDIM, DDPM
from imagen_ft.diffusion.stage import Stage
from imagen_ft.models.efficient_unet import EfficientUNet
from imagen_ft.models.t5 import T5Encoder
from imagen_ft.models.unet import UNet
from imagen_ft.text.encoders import lacking_in_text
from input_pipeline.sources.lacking import lacking_in_source
from launch.errors import InputError
from launch.runtime import app, optional_fields
from tests.configs.tables import CONFIGS, ROOT, command, load
from tests.support import commands

TASKS = ("imagen_ft.finetune", "imagen_ft.sample", "imagen_ft.generate")
TASKS += ("classifiers.train", "classifiers.evaluate")
# Files that others have written are read there, and no configs; or configs of other tasks.
OTHER_FILES = ("imagen_ft/weights/", "classifiers/weights/", "input_pipeline/synthetic/")
OTHER_TASKS = ("imagen_ft/sweep", "imagen_ft/evaluat", "imagen_ft/demo/", "classifiers/stud")
# What code calls the configs and their sections.
NAMES = {"config", "spec", "entry", "fields", "window", "profile"}


def options_read():
    """Field -> the files that read it with a default."""
    read = {}
    for room in ("imagen_ft", "classifiers", "input_pipeline", "launch/runtime"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith((*OTHER_FILES, *OTHER_TASKS)):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(
                        func=ast.Attribute(attr="get", value=ast.Name() | ast.Attribute()),
                        args=[ast.Constant(value=str(field)), *_],
                    ) if NAMES & set(re.findall(r"\w+", ast.unparse(node.func.value))):
                        read.setdefault(field, set()).add(name)
    return read


def lacking_of(path):
    task = importlib.import_module(command(path)[0])
    return task.lacking(load(path).get_config()) if hasattr(task, "lacking") else {}


@pytest.fixture(scope="module")
def reachable():
    names = set()
    for path in CONFIGS:
        if command(path)[0] not in TASKS:
            continue
        config = load(path).get_config()
        names |= set(_names(config.to_dict()))
        names |= {part for field in lacking_of(path) for part in field.split(".")}
    # Of kinds that no config has.
    for name in ("tfds", "parquet", "image_folder", "synthetic"):
        names |= set(lacking_in_source("", {"name": name}))
    texts = lacking_in_text(ConfigDict({"weights": ""}))
    return names | {path.removeprefix("text.") for path in texts}


def _names(section):
    for name, value in section.items():
        yield name
        if isinstance(value, dict):
            yield from _names(value)


def test_options_that_are_read_can_be_set(reachable):
    read = options_read()
    assert {"guidance_interval", "held_out", "crop_size", "keep_checkpoints"} <= set(read)
    assert {field: files for field, files in read.items() if field not in reachable} == {}


@pytest.mark.parametrize(
    "kind", [Stage, Denoiser, DiffusionLoss, DDPM, DDIM, UNet, EfficientUNet, T5Encoder]
)
def test_fields_of_classes_can_be_set(kind, reachable):
    inner = {"parent", "name", "denoiser", "sampler", "schedule", "model", "text_encoder"}
    inner |= {"out_channels", "noise_level", "vocab_size"}  # those that the images or text decide
    assert {field.name for field in dataclasses.fields(kind)} - inner - reachable == set()


@pytest.mark.parametrize("path", CONFIGS)
def test_nothing_changes_where_nothing_is_set(path):
    task = importlib.import_module(command(path)[0])
    if hasattr(task, "lacking"):
        config = load(path).get_config()
        assert not [field for field in task.lacking(config) if optional_fields.has(config, field)]


SAMPLE, FINETUNE = "configs/digits/sample.py", "configs/digits/finetune_base4.py"
TRAIN = "configs/digits/classifier.py"
SET = [
    (SAMPLE, "stages.base4.guidance_interval=(0.2, 0.8)", (0.2, 0.8)),
    (SAMPLE, "stages.base4.sampler.spacing=leading", "leading"),
    (FINETUNE, "stage.unet.remat=True", True),
    (FINETUNE, "train_source.per_class=2", 2),
    (FINETUNE, "optimizer.b2=0.95", 0.95),
    (FINETUNE, "best.metric=validation_loss", "validation_loss"),
    (TRAIN, "augment.randaugment.layers=2", 2),
    (TRAIN, "train_sources.real.classes=('one', 'two')", ("one", "two")),
]


def parse(path, *overrides):
    task = importlib.import_module(command(path)[0])
    argv = [f"--config={path}", "--dry_run", *(f"--config.{field}" for field in overrides)]
    return app.parse(["task", *argv], "", task.define_flags, task.lacking).config


@pytest.mark.parametrize(("path", "override", "expected"), SET)
def test_a_field_that_the_config_lacks_is_set(path, override, expected):
    value = parse(path, override)
    for name in override.partition("=")[0].split("."):
        value = value[name]
    assert value == expected


def test_which_fields_there_are_depends_on_the_others():
    overrides = ["optimizer.momentum=0.8", "optimizer.name=sgd"]
    assert parse(FINETUNE, *overrides).optimizer.momentum == 0.8
    with pytest.raises(InputError, match="there is no config field 'momentum'"):
        parse(FINETUNE, "optimizer.momentum=0.8")


@pytest.mark.parametrize("path", [SAMPLE, FINETUNE, TRAIN, "configs/digits/generate.py"])
def test_defaults_leave_a_config_as_it_is(path):
    lacked = optional_fields.text(lacking_of(path)).splitlines()[1:]
    overrides = [shlex.split(line)[0].removeprefix("--config.") for line in lacked]
    overrides = [override for override in overrides if not override.endswith("=None")]
    assert len(overrides) > 5
    assert parse(path, *overrides).to_json() == parse(path).to_json()


def test_wrong_values_and_names_are_one_line(capsys):
    sample = importlib.import_module("imagen_ft.sample")
    for override, told in [
        ("stages.base4.guidance_interval=(0.8,0.2)", "guidance_interval=(0.8, 0.2): from and to"),
        ("stages.base4.batch_size=many", "batch_size"),
        ("stages.base4.guidance_intervals=(0,1)", "no config field 'guidance_intervals'"),
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
