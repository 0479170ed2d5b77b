"""Training images per CPU second: files decoded, cropped to 224, mirrored, RandAugment(2, 10).

python -m tests.benchmarks.input --data=imagenet.zip [--root=train] [--tensorflow=/venv/bin/python]
python -m tests.benchmarks.input --quick    # a minute, on images that are made for it

Ours is the project's loader. The peers are Pillow in PyTorch's DataLoader, without workers, once
with bytes as output as ours and once with normalised floats as usual; and tf.data in an interpreter
that has TensorFlow. All read the same JPEGs from a folder and do the same operations with the same
arguments. TensorFlow decodes only the cropped part, and resizes as its public training programs do,
bilinear without antialiasing. CPU seconds are those of all threads of a process; other work on the
machine disturbs them less than it disturbs the clock.

Then come the rates of copies that `input_pipeline.prepare` makes of the same files, for which
there is no peer.
"""

import argparse
import functools
import json
import math
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from input_pipeline import prepare
from input_pipeline.augment import randaugment
from input_pipeline.augment.policy import make_augment
from input_pipeline.augment.resize import square
from input_pipeline.batches import loader
from input_pipeline.sources.image_folder import ImageFolder
from input_pipeline.sources.tfds import TfdsSource
from launch.runtime.reports.tables import text_table
from tests.benchmarks.harness import Result, report
from tests.input_pipeline.augment.photographs import photograph

BILINEAR = Image.Resampling.BILINEAR
SIZE, BATCH, LAYERS, MAGNITUDE, FILL = 224, 32, 2, 10, 128
CASES = {
    "crop, flip": dict(size=SIZE, crop=dict(), flip=True),
    "RandAugment": dict(
        size=SIZE,
        crop=dict(),
        flip=True,
        randaugment=dict(layers=LAYERS, magnitude=MAGNITUDE, fill=FILL),
    ),
}


def write_files(args: argparse.Namespace, folder: Path) -> None:
    """Writes JPEGs into class folders of `folder`: those of --data, or made-up ones."""
    if args.data:
        given = ImageFolder(args.data, args.root)._files
        files = {name: given.read(i) for i, name in enumerate(given.names)}
    else:
        made = [photograph(375, 500, seed=seed)[..., ::-1] for seed in range(16)]
        encode = functools.partial(cv2.imencode, params=[cv2.IMWRITE_JPEG_QUALITY, 90])
        files = {f"{i % 4}/{i}.jpg": encode(".jpg", m)[1].tobytes() for i, m in enumerate(made)}
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    print(f"{len(files)} files, {np.mean([*map(len, files.values())]) / 1e3:.0f} kB on average")


def affine(image, *matrix):
    kind = Image.Transform.AFFINE
    return image.transform(image.size, kind, matrix, resample=BILINEAR, fillcolor=(FILL,) * 3)


PILLOW = {
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
    "Invert": ImageOps.invert,
    "Rotate": lambda image, angle: image.rotate(angle, BILINEAR, fillcolor=(FILL,) * 3),
    "Posterize": ImageOps.posterize,
    "Solarize": ImageOps.solarize,
    "SolarizeAdd": lambda image, amount: image.point(
        [min(255, v + amount) if v < 128 else v for v in range(256)] * 3
    ),
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "ShearX": lambda image, factor: affine(image, 1, factor, 0, 0, 1, 0),
    "ShearY": lambda image, factor: affine(image, 1, 0, 0, factor, 1, 0),
    "TranslateX": lambda image, part: affine(image, 1, 0, part * image.width, 0, 1, 0),
    "TranslateY": lambda image, part: affine(image, 1, 0, 0, 0, 1, part * image.height),
}


def pillow_operation(image, name, sign):
    argument = randaugment.OPERATIONS[name].argument
    arguments = [argument(MAGNITUDE / 10, sign, False)] if argument else []
    return PILLOW[name](image, *arguments)


def random_box(rng, width, height):
    """The box of a random resized crop: left, upper, right, lower."""
    for _ in range(10):
        pixels = width * height * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if w <= width and h <= height:
            left, upper = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, upper, left + w, upper + h
    return 0, 0, width, height


class Pillow(torch.utils.data.Dataset):
    """The usual pipeline, as torchvision does it."""

    def __init__(self, paths, layers, floats):
        self.paths, self.layers, self.floats = paths, layers, floats
        self.rng = random.Random(0)
        self.mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        self.std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        image = Image.open(self.paths[i]).convert("RGB")
        image = image.crop(random_box(self.rng, *image.size))
        image = image.resize((SIZE, SIZE), BILINEAR)
        if self.rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for name in self.rng.choices([*PILLOW], k=self.layers):
            image = pillow_operation(image, name, self.rng.choice((1, -1)))
        pixels = torch.from_numpy(np.array(image))
        if not self.floats:
            return pixels
        floats = pixels.permute(2, 0, 1).contiguous().float().div(255)
        return floats.sub_(self.mean).div_(self.std)


def error(paths, case):
    """Relative difference from Pillow for every operation, on the middle of the first images."""
    ours, theirs = [], []
    for path in paths[:4]:
        image = Image.open(path).convert("RGB")
        decoded = np.array(image)
        side = min(image.size)
        box = ((image.width - side) // 2, (image.height - side) // 2)
        middle = image.crop((*box, box[0] + side, box[1] + side))
        theirs.append(np.array(middle.resize((SIZE, SIZE), BILINEAR)))
        ours.append(square(decoded, SIZE))
        for name in PILLOW if "randaugment" in CASES[case] else ():
            ours.append(randaugment.operate(theirs[0], name, MAGNITUDE, 1, False, FILL))
            theirs.append(np.array(pillow_operation(Image.fromarray(theirs[0]), name, 1)))
    ours, theirs = (np.concatenate([i.ravel() for i in s]).astype(float) for s in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


class TensorFlow:
    """tf.data in another interpreter: takes a case, answers with its CPU seconds."""

    def __init__(self, python, folder, batches):
        script = Path(__file__).with_name("input_tensorflow.py")
        argv = [python, str(script), str(folder), str(batches)]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(argv, env=environment, **pipes)

    def __call__(self, layers):
        self.process.stdin.write(f"{int(layers > 0)}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def measure_roads(folder: Path, batches: int) -> Iterator[dict]:
    """Ours on the files, on copies of them as JPEG and raw (shorter side 320), and decoding alone.

    Copies are made from the same images. A crop of at least twice the size of the result can be
    decoded at half the scale, with less work; `share` is the share of such crops.
    """
    roads = {"files": ImageFolder(folder)}
    for name, quality in (("JPEG copy", 95), ("raw copy", 0)):
        to = folder.with_name(f"{folder.name}-{quality}")
        prepare.prepare(prepare.Copy(roads["files"], to, 320, quality), workers=1)
        roads[name] = TfdsSource(to, "train")
    for case, config in CASES.items():
        for name, source in roads.items():
            data = loader.batches(source, BATCH, seed=0, augment=make_augment(config))
            cpu_seconds(loader.iterate(data, 0, batches))
            times = [cpu_seconds(loader.iterate(data, k, k + batches)) for k in range(3)]
            rate = batches * BATCH / min(times)
            yield dict(case=f"{case}, {name}", ours=rate, unit="images per CPU second")
    files = [np.fromfile(path, np.uint8) for path in sorted(folder.glob("*/*"))]
    for name, flag in (("full", cv2.IMREAD_COLOR), ("half", cv2.IMREAD_REDUCED_COLOR_2)):
        times = []
        for _ in range(3):
            start = time.process_time()
            images = [cv2.imdecode(data, flag) for data in files]
            times.append(time.process_time() - start)
        rate = len(files) / min(times)
        yield dict(case=f"decoding, {name} scale", ours=rate, unit="images per CPU second")
        if name == "full":
            sides = [image.shape[1::-1] for image in images]
    rng = random.Random(0)
    boxes = [random_box(rng, *size) for size in sides for _ in range(1000 // len(sides) + 1)]
    wide = [min(right - left, low - top) >= 2 * SIZE for left, top, right, low in boxes]
    yield dict(case="crops that half the scale does for", ours=float(np.mean(wide)), unit="share")


def cpu_seconds(batches: Iterable) -> float:
    """CPU seconds to take them all."""
    start = time.process_time()
    for _ in batches:
        pass
    return time.process_time() - start


def main() -> None:
    """Measures; prints the table and the JSON lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a zip or folder with one folder a class")
    parser.add_argument("--root", default="", help="the folder in it that holds the classes")
    parser.add_argument("--tensorflow", help="a Python that has TensorFlow")
    parser.add_argument("--quick", action="store_true", help="fewer images and repeats")
    args = parser.parse_args()
    torch.set_num_threads(1)
    batches, repeats = (4, 3) if args.quick else (10, 7)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "images")
        folder.mkdir()
        write_files(args, folder)
        results = measure(folder, args.tensorflow, batches, repeats)
        roads = list(measure_roads(folder, batches))
    report(results)
    rows = [[road["case"], f"{road['ours']:,.4g}", road["unit"]] for road in roads]
    print(text_table(["copies", "ours", ""], rows))
    print(*(json.dumps({**road, "peer": None, "ratio": None}) for road in roads), sep="\n")
    if not args.tensorflow:
        print("tf.data was not measured: --tensorflow names no interpreter")


def measure(folder: Path, tensorflow: str | None, batches: int, repeats: int) -> list[Result]:
    """Every case against every peer, alternating, after one warm-up run of each."""
    paths, results, count = sorted(folder.glob("*/*")), [], batches * BATCH
    tf_data = TensorFlow(tensorflow, folder, batches) if tensorflow else None
    order = [i % len(paths) for i in range(count)]
    for case, config in CASES.items():
        layers = LAYERS if "randaugment" in config else 0
        data = loader.batches(ImageFolder(folder), BATCH, seed=0, augment=make_augment(config))
        peers = {
            name: torch.utils.data.DataLoader(Pillow(paths, layers, floats), BATCH, sampler=order)
            for name, floats in (("Pillow", False), ("Pillow, floats", True))
        }
        runs = {"ours": lambda k, data=data: cpu_seconds(loader.iterate(data, k, k + batches))}
        runs |= {name: lambda _, peer=peer: cpu_seconds(peer) for name, peer in peers.items()}
        runs |= {"tf.data": lambda _, layers=layers: tf_data(layers)} if tf_data else {}
        times = {name: [] for name in runs}
        for repeat in range(repeats + 1):
            # In a new order each time, as the previous one may still be busy.
            for name in np.roll([*runs], repeat).tolist():
                seconds = runs[name](repeat * batches)
                times[name] += [seconds] if repeat else []
        unit, ours = "images per CPU second", times.pop("ours")
        for name, theirs in times.items():
            wrong = math.nan if name == "tf.data" else error(paths, case)
            results.append(Result(f"{case}: {name}", ours, theirs, 0.0, count, unit, wrong))
    return results


if __name__ == "__main__":
    main()
