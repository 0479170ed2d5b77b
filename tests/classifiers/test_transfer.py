"""classifiers.transfer through its command line, by a tiny CLIP of random weights."""

import pytest

from classifiers import transfer
from classifiers.weights.__main__ import run as weights
from input_pipeline import sources
from launch.files import read_json
from tests.support import ROOT, tiny_clips
from tests.support.commands import run

CONFIG = f"{ROOT}/configs/clip/few_shot.py:synthetic=,runlocal"


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    source = tiny_clips.save(tiny_clips.clip(), folder / "source")
    assert weights(["weights", f"--from=transformers:{source}", f"--to={folder / 'tiny'}"]) == 0
    return folder / "tiny"


def with_stand_ins(folder):
    """The config, with other real digits where synthetic ones are to be."""
    text = (ROOT / "configs/clip/few_shot.py").read_text()
    other = 'dict(name="digits", split="test")'
    config = folder / "few_shot.py"
    config.write_text(text.replace('dict(name="synthetic", path=args["synthetic"])', other))
    return f"{config}:runlocal"


def test_few_shots(clip_run, tmp_path):
    argv = [f"--config.clip={clip_run}", "--config.shots=(0, 1, 3)", "--config.epochs=20"]
    argv += ["--config.zero_shot.learning_rate=0.05", "--config.few_shot.learning_rate=0.02"]
    config, folder = with_stand_ins(tmp_path), tmp_path / "run"
    assert run(transfer.main, config, folder, *argv) == 0
    result = read_json(folder / "transfer.json")
    arms = result["arms"]
    kinds = ("real", "real+synthetic")
    names = ["zero_shot@0", "synthetic@0", *(f"{kind}@{n}" for n in (1, 3) for kind in kinds)]
    assert set(arms) == set(names)
    for name, arm in arms.items():
        assert len(arm["accuracies"]) == 3 and (arm["difference"] is None) == (
            "synthetic" not in name
        )
    # Real digits in their place are worth more than three shots alone, and than none.
    assert arms["synthetic@0"]["mean"] > arms["zero_shot@0"]["mean"] + 0.05
    assert arms["real+synthetic@3"]["loss"][0] < arms["zero_shot@0"]["loss"][0]
    assert len(set(arms["real@3"]["loss"])) == 3
    # So many of each class, others by each seed; fewer shots are a part of more.
    source = sources.load(dict(name="digits", split="pool"))
    classes = {source.key(i): label for i, label in enumerate(source.labels)}
    drawn = result["drawn"]
    for shots in (1, 3):
        for keys in drawn[str(shots)].values():
            labels = [classes[key] for key in keys]
            assert all(labels.count(label) == shots for label in range(10))
    assert set(drawn["1"]["0"]) < set(drawn["3"]["0"]) != set(drawn["3"]["1"])
    assert (folder / "few_shot.png").exists()


@pytest.mark.slow
def test_arms_are_kept(clip_run, tmp_path):
    """A command that is started again makes the arms that are not there, or are others now."""
    config, folder = with_stand_ins(tmp_path), tmp_path / "run"
    argv = [f"--config.clip={clip_run}", "--config.seeds=1", "--config.epochs=1"]
    argv += ["--config.sets.synthetic.source.per_class=2"]
    assert run(transfer.main, config, folder, *argv, "--config.shots=(2,)") == 0
    first = read_json(folder / "transfer.json")
    assert first["sets"]["synthetic"]["source"]["split"] == "test"
    arms = folder / "arms"
    assert {path.name for path in arms.iterdir()} == {"real@2-0.json", "real+synthetic@2-0.json"}
    (arms / "real@2-0.json").write_text("{}")
    kept = (arms / "real+synthetic@2-0.json").stat().st_mtime_ns
    assert run(transfer.main, config, folder, *argv, "--config.shots=(0, 2)") == 0
    again = read_json(folder / "transfer.json")["arms"]
    assert {name: again[name] for name in first["arms"]} == first["arms"] and len(again) == 4
    assert (arms / "real+synthetic@2-0.json").stat().st_mtime_ns == kept
    tower = ("--config.tuned=1", "--config.tower_rate=0.1", "--config.shots=(0,)")
    assert run(transfer.main, config, folder, *argv, *tower) == 0
    learnt = read_json(folder / "transfer.json")["arms"]
    assert learnt["zero_shot@0"] == again["zero_shot@0"]
    assert learnt["synthetic@0"]["loss"] != again["synthetic@0"]["loss"]


WRONG = {
    "tuned": (["--config.tuned=0"], "config.tuned must be 'head', 'whole', or the number"),
    "tuned blocks": (["--config.tuned=3"], "config.tuned must be at most the 2 blocks of the tow"),
    "tower rate": (["--config.tower_rate=0.0"], "config.tower_rate must be finite and above 0"),
    "shots": (
        ["--config.shots=(0, 200)"],
        "config.shots: shots must be at most the 99 images of class 'zero', got 200",
    ),
    "strategy": (["--config.strategy=turns"], "config.strategy must be one of mix, real_first"),
    "loss": (["--config.loss.temperature=0.0"], "temperature above 0, got (0.5, 0.5) and 0.0"),
    "loss without a number": (["--config.loss.hard=nan"], "hard and soft finite and at least 0"),
    "optimizer": (
        ["--config.optimizer.schedule=line"],
        "optimizer.schedule must be one of 'constant', 'cosine', 'step', got 'line'",
    ),
    "rate": (
        ["--config.zero_shot.learning_rate=nan"],
        "optimizer.learning_rate must be a number of at least 0, got nan",
    ),
    "method": (["--config.method=lora"], "config.method must be classifier_tuning, got 'lora'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name, clip_run, tmp_path, capsys):
    argv, said = WRONG[name]
    assert run(transfer.main, CONFIG, tmp_path / "run", f"--config.clip={clip_run}", *argv) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "run").exists()
