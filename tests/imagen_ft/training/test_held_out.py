"""Images that a source holds out are not trained on, and are what a run is validated on."""

import numpy as np

from imagen_ft import finetune
from imagen_ft.training import train_stage
from launch.errors import Preempted
from tests.support import commands, small_cascade
from tests.support.image_folder import encoded, write_folder

CONFIG = """
from ml_collections import ConfigDict
from tests.imagen_ft import tiny_training
from tests.support import small_cascade

def get_config():
    config = tiny_training.get_config()
    base = dict(small_cascade.STAGES[0][0], size=4, channels=3, prediction="v")
    config.stage, config.loss.vlb_weight = ConfigDict(base), 0.0
    config.text, config.class_names = ConfigDict(small_cascade.TEXT), small_cascade.NAMES
    config.batch_size, config.pictures_every = 9, 0
    return config
"""


def test_images_that_are_held_out(tmp_path, monkeypatch):
    """Each image has a grey of its own: seven of each class, two of them held out."""
    numbers = np.arange(21).reshape(3, 7)
    named = {
        f"{name}/{number}.png": encoded(np.full((4, 4, 3), 10 * number, np.uint8))
        for name, row in zip(small_cascade.NAMES, numbers.tolist(), strict=True)
        for number in row
    }
    write_folder(tmp_path / "images", named)
    (tmp_path / "config.py").write_text(CONFIG)
    trained, evaluated = [], []

    def evaluating(training, source, *_):
        evaluated.extend(source[i]["image"][0, 0, 0] // 10 for i in range(len(source)))

    def reading(batches, **_):
        for batch in batches(0, 5):
            trained.extend(np.asarray(batch["image"])[:, 0, 0, 0] // 10)
        raise Preempted("read")  # To compile a step would tell nothing more.

    monkeypatch.setattr(train_stage, "make_evaluation", evaluating)
    monkeypatch.setattr(train_stage, "fit", reading)
    images = ("name=image_folder", f"path={tmp_path / 'images'}", "held_out=2")
    flags = [f"--config.train_source.{field}" for field in (*images, "split=train")]
    flags += [f"--config.evaluation_source.{field}" for field in (*images, "split=validation")]
    code = commands.run(finetune.main, tmp_path / "config.py", tmp_path / "run", *flags)
    assert code == Preempted.code
    held_out = set(evaluated)
    assert len(evaluated) == 6 and [len(held_out & set(row)) for row in numbers] == [2, 2, 2]
    assert set(trained) == set(range(21)) - held_out
