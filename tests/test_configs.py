"""Every config loads, and its networks' shapes resolve without weights."""

import importlib
import json
import re
from pathlib import Path

import pytest

from configs import arguments
from launch.runtime import app

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").glob("*/*.py")
    if "def get_config(" in path.read_text()
)
# Arguments that change which data a config names.
VARIANTS = {
    "configs/digits/classifier.py": [
        "arm=pool",
        "arm=generated,k=30",
        "arm=real+generated,k=1",
        "arm=real+generated,k=10,runlocal",
    ],
    "configs/digits/evaluate.py": ["split=validation"],
}
TEST_ONLY = "classifiers.evaluate"


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
    config = f"--config={path}" + (f":{argument}" if argument else "")
    with pytest.raises(SystemExit) as ended:
        define_flags = getattr(task, "define_flags", None)
        app.run(task.main, task.__doc__, define_flags, argv=["task", config, "--dry_run"])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    resolved, end = json.JSONDecoder().raw_decode(out)
    counts = re.findall(r"^(\w+): ([\d,]+) parameters$", out[end:], re.M)
    counts = {name: int(count.replace(",", "")) for name, count in counts}
    if not counts:
        assert task.__name__ == TEST_ONLY and "no parameters to count" in out
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
    assert counts.keys() == smaller_counts.keys()
    for count in (*counts.values(), *smaller_counts.values()):
        assert count > 1000
    if command(path)[0] != TEST_ONLY:
        # runlocal is for a glance: never more, and something less.
        assert resolved != smaller


@pytest.mark.parametrize("path", [path for path in CONFIGS if command(path)[0] != TEST_ONLY])
def test_only_the_last_comparison_sees_the_test_images(path):
    for argument in ("", "runlocal", *VARIANTS.get(path, ())):
        config = json.loads(load(path).get_config(argument).to_json())
        assert "test" not in leaves(config), argument


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
