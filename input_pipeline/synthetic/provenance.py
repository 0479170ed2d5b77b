"""What decides about the images of a synthetic set, as its `provenance.json` records it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from input_pipeline.synthetic.plan import Plan, usual_shard
from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.limits import MOST

_FORMAT = 2  # of `provenance.json`
# Characters: file systems allow 255 bytes, and a shard's temporary name is longer than its own.
_LONGEST_NAME = 180


def plan_of(config: Fields, location: epath.PathLike) -> Plan:
    """The plan of a set, from its `provenance.json`; InputError for impossible numbers."""
    fields = ("counts", "copies", "images_per_shard")
    counts, copies, images_per_shard = (config[field] for field in fields)
    numbers = [*counts, copies, images_per_shard]
    if (
        not all(type(number) is int and 0 <= number <= MOST for number in numbers)
        or sum(counts) * copies > MOST
        or not images_per_shard
    ):
        raise InputError(f"{location}: {', '.join(fields)} must be numbers of images")
    return Plan(tuple(counts), copies, images_per_shard)


def check_names(manifest: Fields, location: epath.PathLike) -> None:
    """Raises InputError if a file that a manifest names would lie outside its folder."""
    # A `provenance.json` names no files.
    shards = [entry["file"] for entry in manifest.get("shards", ())]
    for name in (manifest["name"], *manifest.get("files", ()), *shards):
        if not isinstance(name, str) or name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
            raise InputError(f"{location}: {name!r} must be a plain file name")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"provenance must be JSON, got {value!r}")


def checked_config(**values: Any) -> dict[str, Any]:
    """The values as read back from JSON, so that they compare with a file; InputError if wrong."""
    config = json.loads(json.dumps({"format": _FORMAT, **values}, default=_plain))
    # The first fault is enough.
    for fault in _faults(config):
        raise InputError(f"synthetic set: {fault}")
    # 0 asks for shards of the usual size.
    if not config["images_per_shard"]:
        quality = config["encoding"].get("quality")
        config["images_per_shard"] = usual_shard(config["image_shape"], quality)
    return config


def _faults(config: Fields) -> Iterator[str]:
    names, counts, shape = config["class_names"], config["counts"], config["image_shape"]
    # TFDS accepts these names of data sets.
    if not re.fullmatch("[a-z][a-z0-9_]*", config["name"]):
        yield (
            f"name must be lower-case letters, digits and _, a letter first, got {config['name']!r}"
        )
    if len(config["name"]) > _LONGEST_NAME:
        yield f"name must have at most {_LONGEST_NAME} letters, got {len(config['name'])}"
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        yield f"class_names must differ, got {repeated} twice"
    # TFDS stores the names as lines of a file, and strips each.
    if odd := [name for name in names if not name.strip() or name != name.strip()]:
        yield f"class_names must not be empty or begin or end with spaces, got {odd[0]!r}"
    if odd := [name for name in names if re.search("[\n\r\ud800-\udfff]", name)]:
        yield f"class_names must be one line of text each, got {odd[0]!r}"
    if len(names) != len(counts):
        yield f"counts must be one for each of the {len(names)} classes, got {len(counts)}"
    if min(counts, default=0) < 0 or not sum(counts):
        yield f"counts must be at least 0, not all 0, got {counts}"
    if len(shape) != 3 or shape[2] not in (1, 3):
        yield f"image shape must be [h, w, 1 or 3], got {shape}"
    if config["copies"] < 1:
        yield f"copies must be at least 1, got {config['copies']}"
    if sum(counts) * config["copies"] > MOST:
        yield (
            f"copies of {sum(counts)} images must make at most {MOST} in total, got "
            f"{config['copies']} copies"
        )
    if config["images_per_shard"] < 0:
        yield (
            "images_per_shard must be at least 1, or 0 for shards of 150 MB, got "
            f"{config['images_per_shard']}"
        )
    encoding = config["encoding"]
    fields = {"png": ["format"], "jpeg": ["format", "quality"]}.get(encoding.get("format"))
    if sorted(encoding) != fields or not 1 <= encoding.get("quality", 95) <= 100:
        yield (f"encoding must be format png, or format jpeg with quality 1 to 100, got {encoding}")
