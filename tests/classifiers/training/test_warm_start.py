"""Training that begins with another run's weights: other classes, larger images, other seeds."""

import jax
import numpy as np
import pytest

from classifiers.models import presets
from classifiers.models.vit import resize_positions
from classifiers.training import warm_start
from classifiers.training.training import Training
from classifiers.weights.importing import describe
from configs.digits import classifier
from launch.errors import InputError
from launch.files import read_json
from launch.runtime.checkpoints.inference import SealedCheckpoint
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.run import Run
from tests.support import written_runs
from tests.support.classifier_mixture import REAL, run
from tests.support.classifier_weights import draw, same

VIT = dict(width=8, depth=1, num_heads=2, patch_size=4)


def write_run(folder, model, size=8, seeds=2):
    """A finished run; its seeds' variables."""
    found = [draw(model, size, seed) for seed in range(seeds)]
    config = {"model": describe(model), "seeds": seeds, "total_steps": 0}
    written_runs.write_run(folder, config, *found)
    return found


def begin(path, model, size=8, seed=0):
    """The variables and the averages of step 0."""
    config = classifier.get_config("runlocal")
    config.init_from = str(path)
    config.model, config.ema = describe(model), dict(main=dict(decay=0.9))
    training = Training.of(config, model.num_classes, (size, size, 3))
    warm_start.check_start(training)
    state = warm_start.create(training, make_mesh({"data": 1}), seed)
    same(state.ema["main"], state.variables)
    return jax.tree.map(np.asarray, state.variables)


@pytest.mark.parametrize("module", ["vit", "resnet", "resnet_rs"])
def test_the_same_model(module, tmp_path):
    fields = VIT if module == "vit" else dict(stage_sizes=(1,), width=4)
    model = presets.make(module, 3, **fields)
    seeds = write_run(tmp_path, model)
    # A third seed begins with the first of two.
    for seed in range(3):
        same(begin(tmp_path, model, seed=seed), seeds[seed % 2])


def test_the_weights_are_held_once(tmp_path, monkeypatch):
    model = presets.make("vit", 3, **VIT)
    write_run(tmp_path, model)
    read, restored = SealedCheckpoint.variables, []
    monkeypatch.setattr(
        SealedCheckpoint, "variables", lambda *of: restored.append(read(*of)) or restored[-1]
    )
    config = classifier.get_config("runlocal")
    config.init_from, config.model = str(tmp_path), describe(model)
    training = Training.of(config, 3, (8, 8, 3))
    state = warm_start.create(training, make_mesh({"data": 1}), 0)
    addresses = [
        [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]
        for tree in (state.variables, restored[0])
    ]
    assert addresses[0] == addresses[1]


def test_the_run_is_opened_once(tmp_path, monkeypatch):
    model = presets.make("vit", 3, **VIT)
    write_run(tmp_path, model)
    opened, find = [], SealedCheckpoint.find
    monkeypatch.setattr(SealedCheckpoint, "find", lambda *of: opened.append(of) or find(*of))
    config = classifier.get_config("runlocal")
    config.model, config.init_from, config.seeds = describe(model), str(tmp_path), 3
    training = Training.of(config, 3, (8, 8, 3))
    warm_start.check_start(training)
    (tmp_path / "config.json").unlink()
    for seed in range(3):
        warm_start.create(training, make_mesh({"data": 1}), seed)
    assert [str(folder) for folder, *_ in opened] == [str(tmp_path / f"seed_{n}") for n in (0, 1)]


def test_larger_images_and_other_classes(tmp_path):
    old = write_run(tmp_path, presets.make("vit", 3, **VIT))[0]["params"]
    model = presets.make("vit", 5, **VIT, drop_path=0.1, dropout=0.1, remat=True)
    params = begin(tmp_path, model, 16)["params"]
    head = params.pop("head")
    assert head["kernel"].shape == (8, 5) and not head["kernel"].any() and not head["bias"].any()
    expected = resize_positions(old.pop("positions"), 1, (2, 2), (4, 4))
    np.testing.assert_array_equal(params.pop("positions"), expected)
    del old["head"]
    same(params, old)


@pytest.mark.parametrize(
    ("module", "fields", "message"),
    [
        (
            "vit",
            dict(VIT, num_heads=4),
            r"config\.init_from=.*: model\.num_heads must be 4, as in config\.model, got 2",
        ),
        (
            "vit",
            dict(VIT, pixels="imagenet"),
            r"config\.init_from=.*: model\.pixels must be .*got 'plain'",
        ),
        (
            "vit",
            dict(VIT, layer_scale=0.1),
            r"config\.init_from=.* and config\.model differ in params\.block_0\.scale_1",
        ),
        ("resnet", dict(stage_sizes=(1,)), r"must be a ResNet, as config\.model, got a ViT"),
    ],
)
def test_other_models(module, fields, message, tmp_path):
    write_run(tmp_path, presets.make("vit", 3, **VIT))
    with pytest.raises(InputError, match=message) as raised:
        begin(tmp_path, presets.make(module, 3, **fields))
    assert f"config.init_from={tmp_path}" in str(raised.value)


def test_grey_weights_for_coloured_images(tmp_path):
    model = presets.make("vit", 3, **VIT)
    variables = write_run(tmp_path / "run", model)[0]
    variables["params"]["patch_embed"]["kernel"] = np.ones((4, 4, 1, 8), np.float32)
    with pytest.raises(
        InputError,
        match=r"kernel must have the shape \(4, 4, 3, 8\) of config\.model, got \(4, 4, 1, 8\)",
    ):
        warm_start._fit_variables(variables, model, (8, 8, 3), "run")


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    model = dict(VIT, name="vit")
    assert run(tmp_path / "first", dict(real=REAL), model=model) == 0
    optimizer = dict(classifier.get_config().optimizer, learning_rate=0.0)
    fields = dict(model=model, init_from=f"{tmp_path}/first")
    assert run(tmp_path / "second", dict(real=REAL), **fields, optimizer=optimizer) == 0
    first, second = (Run.open(tmp_path / name).seeds[0].digest() for name in ("first", "second"))
    assert first == second
    assert read_json(tmp_path / "second" / "inputs.json")["init_from_0"] == first
    capsys.readouterr()
    assert run(tmp_path / "third", dict(real=REAL), **fields | dict(init_from="none")) == 2
    assert "none is not a run" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()
