"""What people read about a synthetic set: a data-set card and a picture of samples."""

import json
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from input_pipeline.augment.resize import resize
from input_pipeline.records import image_codec
from input_pipeline.records.tfrecord import TFRecordFile, starts_of
from input_pipeline.synthetic import source
from input_pipeline.synthetic.writer import CARD, SyntheticWriter

PICTURE = "samples.png"
_CLASSES, _IMAGES, _TILE = 10, 8, 64  # rows and columns of the picture; pixels of a tile at least
_TEXT = """---
pretty_name: {name}
task_categories: [image-classification]
tags: [synthetic, diffusion]
---

# {name}

{images:,} synthetic images of {classes:,} classes, {height}x{width} pixels, {encoding}: {copies}
for each of the {real:,} images of a real set, class by class. No image of it is real.

![Some of them]({picture})

Each line shows images of one class: {shown}.

| | |
|---|---|
| images a class | {least:,} to {most:,} |
| shards | {shards:,}, of {per_shard:,} images |
| weights | {weights} |

```python
import tensorflow_datasets as tfds

builder = tfds.builder_from_directory("THIS FOLDER")
data = builder.as_dataset(split="train", as_supervised=True)  # with TensorFlow: image, label
```

Without TensorFlow, with imagen-ft:

```python
from input_pipeline.synthetic.source import SyntheticSource

records = SyntheticSource("THIS FOLDER").records()  # and [i], and len()
```

For `as_data_source` of TFDS, which reads no TFRECORD, a copy is made by

    python -m input_pipeline.synthetic --set="THIS FOLDER" --export=array_record --to=DIR

`config.train_sources.synthetic = dict(name="synthetic", path="THIS FOLDER")` trains a classifier of
imagen-ft on it. A record has `image`, `label`, `class_name`, `prompt` and `index`; the first
{real:,} indices are one image for each real one, and so on. The shards' names, sizes and
checksums are in `manifest.json`. This reads all of it back:

    python -m imagen_ft.generate --config=... --workdir="THIS FOLDER" --verify

## Made from

```json
{provenance}
```
"""


def make_card(writer: SyntheticWriter, provenance: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Names and contents of the card's files; all shards must be written."""
    plan, config = writer.plan, writer.config
    height, width, _ = config["image_shape"]
    # 1. Classes for the picture, evenly spaced over those that have images.
    labels = np.flatnonzero(plan.counts)
    shown = labels[np.linspace(0, len(labels) - 1, min(_CLASSES, len(labels))).astype(int)]
    # 2. The text.
    quality = config["encoding"].get("quality")
    text = _TEXT.format(
        name=config["name"],
        images=plan.num_images,
        classes=len(labels),
        height=height,
        width=width,
        encoding=config["encoding"]["format"] + (f" of quality {quality}" if quality else ""),
        copies=plan.copies,
        real=plan.copy_size,
        picture=PICTURE,
        shown=", ".join(_caption(writer, int(label)) for label in shown),
        least=min(plan.counts[label] * plan.copies for label in labels),
        most=max(plan.counts) * plan.copies,
        shards=plan.num_shards,
        per_shard=plan.images_per_shard,
        weights=", ".join(f"`{digest}`" for digest in provenance.get("weights", [])) or "none",
        provenance=json.dumps(provenance, indent=2, sort_keys=True),
    )
    return [(CARD, text.encode()), (PICTURE, image_codec.encode_png(_picture(writer, shown)))]


def _picture(writer: SyntheticWriter, labels: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "h w c"]:
    # 1. The size of a tile: small images are enlarged by whole numbers, large ones shrunk.
    height, width, channels = writer.config["image_shape"]
    scale = max(1, _TILE // max(height, width)) if max(height, width) < _TILE else 1
    tile = (height * scale, width * scale)
    if max(tile) > 2 * _TILE:
        tile = tuple(side * 2 * _TILE // max(tile) for side in tile)
    # 2. A row of images per class, on white.
    gap = 2
    rows, columns = len(labels), _IMAGES
    # Gaps of 2 pixels around every tile.
    picture = np.full(
        (rows * (tile[0] + gap) + gap, columns * (tile[1] + gap) + gap, channels), 255, np.uint8
    )
    # The first images of the class, by index.
    for row, label in enumerate(labels):
        for column, index in enumerate(np.flatnonzero(writer.plan.labels == label)[:columns]):
            image = np.repeat(np.repeat(_read(writer, int(index)), scale, 0), scale, 1)
            top, left = gap + row * (tile[0] + gap), gap + column * (tile[1] + gap)
            picture[top : top + tile[0], left : left + tile[1]] = resize(image, tile)
    return picture


def _caption(writer: SyntheticWriter, label: int) -> str:
    """The class name, plus its prompt if that differs: a WordNet id alone says little."""
    name = writer.class_names[label]
    index = int(np.flatnonzero(writer.plan.labels == label)[0])
    prompt = _record(writer, index)["prompt"].decode()
    return name if prompt == name else f"{name} ({prompt})"


def _read(writer: SyntheticWriter, index: int) -> UInt8[np.ndarray, "h w c"]:
    fields = _record(writer, index)
    return image_codec.decode_image(fields["image"], writer.config["image_shape"][2])


def _record(writer: SyntheticWriter, index: int) -> dict[str, Any]:
    shard, record = writer.plan.locate(index)
    path = writer.shard_path(shard)
    sidecar = writer.sidecar(shard)
    # The sidecar has the record lengths, so one record is read without a scan.
    assert sidecar is not None, "a card is made when all shards are written"
    data = TFRecordFile(path, starts_of(sidecar["lengths"]))[record]
    return source.parse(data, f"{path}: record {record}")
