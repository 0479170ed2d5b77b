"""Every config loads, and its networks' shapes resolve without weights."""

import importlib
import json
import re
from pathlib import Path

import pytest

from configs import arguments
from imagen_ft.cascade.loading import with_dtypes
from tests.configs.tables import (
    CONFIGS,
    PARAMETERS,
    RECIPE_FILES,
    RECIPES,
    ROOT,
    VARIANTS,
    command,
    load,
)
from tests.support import commands
from tests.support.slow import only_fast

# Tasks that compare what was trained: they may look at the test images.
COMPARISONS = (
    "classifiers.evaluate",
    "classifiers.study",
    "classifiers.transfer",
    "classifiers.zero_shot",
    "imagen_ft.worth",
)


def dry_run(path, argument, capsys):
    """What the task prints: its config, and the number of parameters of each network."""
    task = importlib.import_module(command(path)[0])
    config = path + (f":{argument}" if argument else "")
    code = commands.run(task.main, config, None, "--dry_run")
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    resolved, end = json.JSONDecoder().raw_decode(out)
    *tables, _ = re.split(r"^[\w.]+: [\d,]+ parameters$", out[end:], flags=re.M)
    # A screen each; before them a study has the command lines of its runs.
    assert all(table.count("\n") < 50 for table in tables) or task.__name__.endswith(".study")
    counts = re.findall(r"^([\w.]+): ([\d,]+) parameters$", out[end:], re.M)
    counts = {name: int(count.replace(",", "")) for name, count in counts}
    if not counts:
        without = (".evaluate", ".filter", ".transfer", ".zero_shot")
        assert task.__name__.endswith(without) and "no parameters to count" in out
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


# One of each kind is always looked at; a large one takes ten seconds of two cores to shape.
SHORT = [
    f"configs/{name}.py"
    for name in (
        "cifar10/clip",
        "cifar10/finetune_sr32",
        "cifar10/vit",
        "digits/generate",
        "digits/pretrain_base4",
        "digits/sweep",
        "imagenet/deit_s",
        "imagenet/imagen_sr1024",
        "imagenet/resnet50",
    )
]


@pytest.mark.parametrize("path", only_fast(CONFIGS, SHORT))
def test_its_networks_resolve(path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    resolved, counts = dry_run(path, "", capsys)
    smaller, smaller_counts = dry_run(path, "runlocal", capsys)
    assert resolved == json.loads(with_dtypes(load(path).get_config("")).to_json())
    assert smaller == json.loads(with_dtypes(load(path).get_config("runlocal")).to_json())
    texts = [config.get("cascade", config).get("text", ()) for config in (resolved, smaller)]
    if "cache" in texts[0] and "cache" not in texts[1]:
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


@pytest.mark.parametrize(
    ("task", "name", "field"),
    [
        ("imagen_ft.evaluate", "sample", "sets"),
        ("imagen_ft.finetune", "sample", "stage"),
        ("imagen_ft.sample", "classifier", "class_names"),
        ("imagen_ft.sample", "generate", "images_per_prompt"),
        ("imagen_ft.generate", "classifier", "stages"),
        ("classifiers.train", "sample", "evaluation_source"),
        ("classifiers.evaluate", "sample", "sets"),
        ("classifiers.study", "evaluate", "studies"),
    ],
)
def test_a_config_of_another_task(task, name, field, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    module = importlib.import_module(task)
    assert commands.run(module.main, f"configs/digits/{name}.py", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: config.{field} is missing, and this task needs it; add it")
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", CONFIGS)
def test_unknown_arguments(path):
    with pytest.raises(ValueError, match="there is no argument 'quickly'"):
        load(path).get_config("quickly")


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
        ("k=many", "'k=many' must have a value of type int"),
        ("k", "'k' must have a value of type int"),
        ("rate=x", "a value of type float"),
        ("runlocal=yes", "'runlocal=yes' must be True or False"),
        ("size=3", "no argument 'size'"),
    ):
        with pytest.raises(ValueError, match=said):
            parse(text)
