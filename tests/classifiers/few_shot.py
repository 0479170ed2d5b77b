"""Few shots of photographs with synthetic images beside them, by a tiny CLIP; prints the table.

python -m tests.classifiers.few_shot WORKDIR [SYNTHETIC]

Trains the CLIP of configs/cifar10/clip.py on half of the classes, and tunes on 1 to 16 shots. The
synthetic images are SYNTHETIC, a set of our cascade for CIFAR-10; without one, corrupted copies of
real photographs (blurred and noisy, 100 a class) stand for them, and their folder says so in
transfer.json. CIFAR10_SAMPLE may name the zip. What is there is not made again.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from classifiers import train_clip, transfer
from input_pipeline import sources
from launch.runtime.atomic_folder import atomic_folder
from tests.support.commands import run
from tests.support.real_images import zipped_photographs

COPIES, BLUR, NOISE = 100, 1.2, 25.0  # of each class; pixels; of 255
CONFIG = """
from configs.cifar10 import few_shot

def get_config():
    config = few_shot.get_config("clip={clip},data={data},synthetic={synthetic}")
    {change}
    return config
"""
STAND_IN = 'config.sets.synthetic = dict(source=dict(name="image_folder", path="{folder}"))'


def write_corrupted_copies(source, folder):
    """Writes every image, blurred and noisy, into a folder of its class."""
    for i in range(len(source)):
        image = cv2.GaussianBlur(source[i]["image"], (0, 0), BLUR).astype(np.float32)
        image += np.random.default_rng(i).normal(0, NOISE, image.shape)
        path = folder / source.class_names[source.labels[i]] / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8)[..., ::-1])


def few_shot(folder, synthetic=""):
    """Trains, tunes, and leaves `few_shot/transfer.json` and the figure in the folder."""
    data = zipped_photographs("cifar10_sample")
    arguments = f"configs/cifar10/clip.py:data={data}"
    assert run(train_clip.main, arguments, folder / "clip") == 0
    change = "pass"
    if not synthetic:
        copies = folder / "corrupted_copies"
        if not copies.exists():
            spec = dict(name="image_folder", path=str(data), root="cifar10_sample/train")
            part = dict(held_out=50, split="train", per_class=COPIES)
            with atomic_folder(copies) as whole:
                write_corrupted_copies(sources.load(spec | part), whole)
        change = STAND_IN.format(folder=copies)
    config = folder / "few_shot.py"
    names = dict(clip=folder / "clip", data=data, synthetic=synthetic, change=change)
    config.write_text(CONFIG.format(**names))
    assert run(transfer.main, config, folder / "few_shot") == 0


if __name__ == "__main__":
    few_shot(Path(sys.argv[1]), *sys.argv[2:])
    if not sys.argv[2:]:
        print("synthetic: no synthetic images, but corrupted copies of real ones in their place")
