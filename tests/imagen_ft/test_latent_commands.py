"""Sets of images that Stable Diffusion draws: synthetic, and drawn on the way of a measure."""

import functools
import json

import numpy as np
import pytest
from etils import epath

from imagen_ft import generate
from imagen_ft.cascade import Cascade
from imagen_ft.cascade.opened import as_config
from imagen_ft.evaluation.drawn import Drawn, Plan
from input_pipeline.synthetic.source import SyntheticSource
from tests.parity.latent_models import save_pipeline
from tests.support import ROOT, commands

NAMES, COUNTS = ("ant", "bee", "cat"), {"ant": 3, "bee": 0, "cat": 2}
CONFIG = """
import json
from ml_collections import ConfigDict
from imagen_ft.cascade.opened import as_config

def get_config():
    config = as_config({pipeline!r})
    config.text.dtype, config.text.template = "float32", "a {{}}"
    with config.ignore_type():
        config.class_names = {names}
    config.stages.sd.sampler.num_steps, config.stages.sd.stored_size = 2, 12
    config.stages.sd.stage.unet.dtype = config.stages.sd.stage.autoencoder.dtype = "float32"
    config.name, config.copies, config.batch_size = "latents", 2, 4
    config.counts, config.encoding = {counts!r}, dict(size=0, format="png")
    return config
"""


@pytest.mark.slow
def test_sets(tmp_path, monkeypatch):
    """A synthetic set is of the stored size, and goes on as it began; a drawn one is the same."""
    monkeypatch.chdir(ROOT)
    pipeline, counts = tmp_path / "pipeline", tmp_path / "counts.json"
    save_pipeline(pipeline, "sd15", "epsilon")
    counts.write_text(json.dumps(COUNTS))
    text = CONFIG.format(pipeline=str(pipeline), names=NAMES, counts=str(counts))
    (tmp_path / "config.py").write_text(text)
    run = functools.partial(commands.run, generate.main, tmp_path / "config.py")
    assert run(tmp_path / "set") == 0
    source = SyntheticSource(tmp_path / "set")
    images = np.stack([source[index]["image"] for index in range(len(source))])
    assert images.shape == (10, 12, 12, 3) and images.std() > 10
    assert run(tmp_path / "set") == 0 and run(tmp_path / "set", "--verify") == 0

    config = as_config(pipeline)
    config.text.dtype = "float32"
    fields = dict(dtype="float32", num_steps=2, stored_size=12, batch_size=4)
    load = lambda: Cascade.load(config, **fields)  # noqa: E731
    assert load().encoder.digest in (tmp_path / "set/provenance.json").read_text()
    plan = Plan(np.array([0, 1, 1], np.int32), ("an ant", "a cat"), 0)
    drawn = Drawn(load, plan, epath.Path(tmp_path / "drawn"), "latents")
    drawn.draw()
    shown = np.stack([drawn[index]["image"] for index in range(3)])
    assert shown.shape == (3, 12, 12, 3) and shown.std() > 10
    expected = load().sample(["an ant", "a cat", "a cat"], seed=0, batch_size=4)
    np.testing.assert_array_equal(shown, expected)
