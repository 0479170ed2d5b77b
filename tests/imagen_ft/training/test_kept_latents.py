"""Latents that are kept: training sees of them what it sees of images, and they are made once."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from imagen_ft import finetune
from imagen_ft.cascade.autoencoder import NEW
from imagen_ft.training import kept_latents, warm_start
from imagen_ft.training.image_losses import MOMENTS
from imagen_ft.training.images import make_reader, open_images, to_size
from imagen_ft.training.latents import latents_of
from imagen_ft.training.training import Training
from input_pipeline.source import Subset
from launch.errors import InputError
from launch.runtime.devices.mesh import make_mesh, put_batch
from tests.imagen_ft import tiny_training
from tests.support import commands

VAE = dict(block_out_channels=(4, 8), layers_per_block=1, num_groups=2, out_channels=1)


def get_config(arg=""):
    """Of 8 px digits, some of them mirrored; the folder of what is kept, or none."""
    config = tiny_training.get_config()
    unet = dict(block_out_channels=(8,), attention=(True,), num_heads=2, layers_per_block=1)
    config.stage = ConfigDict(
        dict(
            size=4,
            low_size=0,
            channels=4,
            schedule="scaled_linear",
            unet=dict(unet, num_groups=4, dtype="float32"),
            autoencoder=dict(VAE, weights=NEW),
        )
    )
    config.latents, config.flip = dict(cache=arg), True
    config.train_source.split, config.evaluation_source.split = "pool", "validation"
    config.pictures_every, config.loss.vlb_weight = 0, 0.0
    return config


@pytest.fixture
def mesh():
    return make_mesh({}, jax.devices()[:1])


def look(training, source, digest=NEW):
    return kept_latents.look(training, source, to_size(training), digest)


def few(training, count=40):
    return Subset(open_images(training).train, np.arange(count))


@pytest.mark.slow
def test_what_is_kept_is_what_is_encoded(tmp_path, mesh):
    """The same images, flips and noise, so the same latents to half precision."""
    folder = tmp_path / "kept"
    training = Training.of(get_config())
    keeping = Training.of(get_config(str(folder)))
    source = few(training)
    kept = look(keeping, source).fill(keeping)
    autoencoder, _ = warm_start.load_latents(training, mesh)

    def latents(training, source, autoencoder):
        (batch,) = make_reader(training, source, mesh)(0, 1)
        drawn = jax.jit(training.draw)(put_batch(mesh, batch), jax.random.key(0), autoencoder)
        return batch, drawn

    images, expected = latents(training, source, autoencoder)
    moments, found = latents(keeping, kept, None)
    np.testing.assert_array_equal(moments["label"], images["label"])
    assert moments[MOMENTS].dtype == np.float16 and "image" not in moments
    size = np.abs(expected["latents"]).mean()
    np.testing.assert_allclose(found["latents"], expected["latents"], rtol=1e-3, atol=2e-3 * size)
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["eps"], expected["eps"])
    # Both are there, and both were taken.
    parts = np.stack([kept[i][MOMENTS] for i in range(len(kept))])
    taken = [any(np.array_equal(m, part[0]) for part in parts) for m in moments[MOMENTS]]
    assert 0 < sum(taken) < len(taken)
    assert not np.allclose(parts[:, 1], parts[:, 0, :, ::-1], atol=1e-2)


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Parts that are whole stay, and what is added is added alone; other latents are refused."""
    training = Training.of(get_config(str(tmp_path / "kept")))
    row_bytes = 2 * 4 * 4 * 8 * 2
    monkeypatch.setattr(kept_latents, "PART_BYTES", 16 * row_bytes)
    source, checked = few(training), kept_latents._checked
    encoded = []

    def interrupted(moments, name):
        encoded.append(name)
        if len(encoded) == 20:
            raise KeyboardInterrupt
        return checked(moments, name)

    with monkeypatch.context() as patch:
        patch.setattr(kept_latents, "_checked", interrupted)
        with pytest.raises(KeyboardInterrupt):
            look(training, source).fill(training)
    keeping = look(training, source)
    assert keeping.missing == list(range(16, 40))
    first = tmp_path / "kept/part-00000.safetensors"
    before = first.read_bytes()
    assert len(keeping.fill(training)) == 40 and first.read_bytes() == before
    assert len(list((tmp_path / "kept").glob("part-*"))) == 3
    assert not look(training, few(training, 7)).missing
    assert look(training, few(training, 42)).missing == [40, 41]
    for said, change in {
        "autoencoder was new, now it is another": {},
        "flip was True, now it is False": dict(flip=False),
        "scaling_factor was 0.18215, now it is 0.5": {"stage.autoencoder.scaling_factor": 0.5},
        "computed_in was float32, now it is bfloat16": {"stage.autoencoder.dtype": "bfloat16"},
    }.items():
        config = get_config(str(tmp_path / "kept"))
        config.update_from_flattened_dict(change)
        with pytest.raises(InputError, match=f"has other latents .{said}.; choose another"):
            look(Training.of(config), source, NEW if change else "another")


@pytest.mark.slow
def test_bad_input(tmp_path, capsys):
    """One line and exit code 2, before anything is written."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("")
    file = f"{__file__}:{tmp_path}/other"
    assert commands.run(finetune.main, file, tmp_path / "run") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "has other files in it; choose another" in error[0]
    assert not (tmp_path / "run").exists()
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("")
    training = Training.of(get_config(str(tmp_path / "file")))
    with pytest.raises(InputError, match="must be a folder, got the file"):
        look(training, few(training))
    with pytest.raises(InputError, match=r"config\.latents\.cache must be a folder, got 5"):
        latents_of(ConfigDict(dict(latents=dict(cache=5), stage=dict(autoencoder=VAE))))


@pytest.mark.parametrize("value", [1e5, np.nan])
def test_latents_beyond_half_precision(value):
    with pytest.raises(InputError, match="but those of image name are not, as float16"):
        kept_latents._checked(np.full((1, 2, 2, 8), value, np.float32), "name")


@pytest.mark.slow
def test_a_step_needs_no_autoencoder(mesh):
    """Its program takes what is kept, and nothing of the auto-encoder."""
    for folder, is_kept in (("", False), ("kept", True)):
        lowered = Training.of(get_config(folder)).lower(mesh)
        shapes = jax.tree.leaves(lowered.args_info)
        assert any(leaf.dtype == np.float16 for leaf in shapes) == is_kept
        assert ("quant_conv" in str(lowered.args_info)) != is_kept
