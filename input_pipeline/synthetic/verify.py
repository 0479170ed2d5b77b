"""Reads a synthetic set back and reports what is wrong with it."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int64

from input_pipeline.records.tfrecord import TFRecordFile
from input_pipeline.synthetic import source
from input_pipeline.synthetic.plan import Plan
from input_pipeline.synthetic.provenance import check_names, plan_of
from input_pipeline.synthetic.writer import INDEX, MANIFEST, PROVENANCE, shard_name, sidecar_path
from launch import files
from launch.cpus import usable_cpus
from launch.errors import InputError

LISTED = 20  # faults of each kind, and classes, that a report lists before it sums up
_IDLE = lambda count: None  # noqa: E731


@dataclasses.dataclass
class ShardReport:
    """What `verify` finds in one shard."""

    number: int
    indices: Int64[np.ndarray, " m"]  # as its records say
    labels: Int64[np.ndarray, " m"]  # as its records say
    # Indices of images that do not decode to the set's size,
    undecodable: list[int] = dataclasses.field(default_factory=list)
    # have another label or class name than the plan's,
    mislabelled: list[int] = dataclasses.field(default_factory=list)
    # or are of a single colour.
    blank: list[int] = dataclasses.field(default_factory=list)
    # What is wrong with its files, one line each.
    damaged: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Report:
    """What `verify` found."""

    num_examples: int
    class_counts: dict[str, int]  # class name -> records
    # By kind: `missing`, `double`, `undecodable`, `mislabelled` and `blank` list indices of images,
    # `damaged` and `foreign` (of another set) list files.
    faults: dict[str, Sequence[Any]]
    shards: list[int]  # to be written again

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not any(map(len, self.faults.values()))

    def as_json(self) -> dict[str, Any]:
        """For people and programs: long lists are cut, and many classes are summed up."""
        faults = {
            kind: {"count": len(cases), "first": np.asarray(cases[:LISTED]).tolist()}
            for kind, cases in self.faults.items()
            if len(cases)
        }
        return {
            "ok": self.ok,
            "num_examples": self.num_examples,
            **self._counts(),
            "faults": faults,
            "shards_to_repair": len(self.shards),
        }

    def _counts(self) -> dict[str, Any]:
        if len(self.class_counts) <= LISTED:
            return {"class_counts": self.class_counts}
        counts = self.class_counts.values()
        numbers = {"least": min(counts), "most": max(counts), "empty": list(counts).count(0)}
        return {"classes": {"count": len(counts), **numbers}}


def verify(folder: epath.PathLike, progress: Callable[[int], Any] = _IDLE) -> Report:
    """Reads a whole set: checksums, every image and every index. InputError if there is none.

    `progress` is called with the number of images read, after each shard.
    """
    # 1. What the set should be.
    folder = epath.Path(folder)
    config, damaged = _config(folder)
    plan, set_id = plan_of(config, folder), files.json_digest(config)
    entries = _manifest(folder, damaged)
    check = lambda number: _check(folder, config, plan, set_id, entries, number)  # noqa: E731
    # 2. Read the shards, one per core at a time. Of an image nothing is kept but how often it was
    # seen.
    times = np.zeros(plan.num_images, np.uint8)
    counts = np.zeros(len(config["class_names"]), np.int64)
    faults: dict[str, list[Any]] = {"undecodable": [], "mislabelled": [], "blank": []}
    shards = set()
    with concurrent.futures.ThreadPoolExecutor(usable_cpus()) as pool:
        for shard in pool.map(check, range(plan.num_shards)):
            # Damaged records may name any index and label.
            inside = (shard.indices >= 0) & (shard.indices < len(times))
            np.add.at(times, shard.indices[inside], 1)
            valid = (shard.labels >= 0) & (shard.labels < len(counts))
            np.add.at(counts, shard.labels[valid], 1)
            for kind in faults:
                faults[kind] += getattr(shard, kind)
            damaged += shard.damaged
            # Blank images are reported but not repaired: the same seed would draw them again.
            if shard.damaged or shard.undecodable or shard.mislabelled:
                shards.add(shard.number)
            progress(plan.shard_size(shard.number))
    # 3. Images that no shard has, or several. Their shards are to be written again.
    for kind, indices in (
        ("missing", np.flatnonzero(times == 0)),
        ("double", np.flatnonzero(times > 1)),
    ):
        shards.update(np.unique(plan.locate_all(indices)[0]).tolist())
        faults[kind] = indices.tolist()
    # 4. Files of other sets, and the report.
    faults["damaged"], faults["foreign"] = damaged, _foreign(folder, config, plan)
    class_counts = dict(zip(config["class_names"], counts.tolist(), strict=True))
    return Report(int(counts.sum()), class_counts, dict(faults), sorted(shards))


def _config(folder: epath.Path) -> tuple[dict[str, Any], list[str]]:
    """What the set is made from, and what is wrong with the files that say so."""
    if not (folder / PROVENANCE).exists() and not (folder / MANIFEST).exists():
        raise InputError(
            f"{folder} is not a synthetic set (it has no {PROVENANCE}); check the path"
        )
    damaged, config = [], None
    # The first that can be read counts, and the other must agree with it.
    for name in (PROVENANCE, MANIFEST):
        try:
            content = files.read_sealed(folder / name)
            check_names(content, folder / name)
        except InputError as error:
            damaged.append(str(error))
            continue
        if config is None:
            config = content
            # A manifest has these besides.
            fields = set(content) - {"num_examples", "class_counts", "files", "shards", "code"}
        elif any(content.get(field) != config[field] for field in fields):
            damaged.append(f"{folder / name}: belongs to another set than {PROVENANCE}")
    if config is None:
        raise InputError("; ".join(damaged))
    return {field: config[field] for field in fields}, damaged


def _manifest(folder: epath.Path, damaged: list[str]) -> list[dict[str, Any]] | None:
    """The manifest's entries for shards; adds to `damaged` what is wrong with its other files."""
    try:
        manifest = files.read_sealed(folder / MANIFEST)
        check_names(manifest, folder / MANIFEST)
    except InputError:
        # Reported by `_config` already, or the set is not complete yet.
        return None
    for name, digest in manifest["files"].items():
        path = folder / name
        if not path.exists() or files.sha256(path) != digest:
            damaged.append(f"{path}: missing or changed since it was written")
    return manifest["shards"]


def _foreign(folder: epath.Path, config: dict[str, Any], plan: Plan) -> list[str]:
    """Shards and sidecars that do not belong to the set."""
    numbers = range(plan.num_shards)
    shards = {shard_name(config["name"], number, plan.num_shards) for number in numbers}
    sidecars = {sidecar_path(folder, number, plan.num_shards).name for number in numbers}
    paths = [path for path in folder.glob("*.tfrecord-*") if path.name not in shards]
    paths += [path for path in folder.glob(f"{INDEX}/*.json") if path.name not in sidecars]
    return [str(path) for path in sorted(paths)]


def _check(
    folder: epath.Path,
    config: dict[str, Any],
    plan: Plan,
    set_id: str,
    entries: list[dict[str, Any]] | None,
    number: int,
) -> ShardReport:
    # 1. The records.
    path = folder / shard_name(config["name"], number, plan.num_shards)
    shard, lengths = _read(path, config, plan, number)
    if shard.damaged:
        return shard
    # 2. The sidecar, and the manifest if there is one.
    sidecar = sidecar_path(folder, number, plan.num_shards)
    kept = dict(num_examples=len(lengths), num_bytes=path.stat().length, sha256=files.sha256(path))
    try:
        index = files.read_object(sidecar)
        if index != {"set": set_id, "lengths": lengths, **kept}:
            shard.damaged.append(f"{sidecar}: not the index of {path.name}")
    except InputError as error:
        shard.damaged.append(str(error))
    if entries is not None and entries[number] != {"file": path.name, **kept}:
        shard.damaged.append(f"{path}: not the shard of {MANIFEST}")
    return shard


def _read(
    path: epath.Path, config: dict[str, Any], plan: Plan, number: int
) -> tuple[ShardReport, list[int]]:
    indices, labels = [], []
    shard = ShardReport(number, np.empty(0, np.int64), np.empty(0, np.int64))
    expected = plan.indices(number).tolist()
    lengths = []
    try:
        for record, (_, data) in enumerate(TFRecordFile.scan(path)):
            # The scan continues after a record with a wrong checksum.
            if isinstance(data, InputError):
                shard.damaged.append(str(data))
                continue
            lengths.append(len(data))
            fields = source.parse(data, f"{path}: record {record}")
            index, label = fields["index"], fields["label"]
            indices.append(index)
            labels.append(label)
            # The plan says which image this record must be.
            if not _is_label_of(config, plan, index, label, fields["class_name"]):
                shard.mislabelled.append(index)
            elif record >= len(expected) or index != expected[record]:
                shard.damaged.append(f"{path}: record {record} is image {index}, not its own")
            # An image of one colour decodes too, but is hardly what a model should draw.
            image = source.decode(fields["image"], config["image_shape"])
            if image is None:
                shard.undecodable.append(index)
            elif image.min() == image.max():
                shard.blank.append(index)
    except InputError as error:
        shard.damaged.append(str(error))
    shard.indices, shard.labels = np.array(indices, np.int64), np.array(labels, np.int64)
    return shard, lengths


def _is_label_of(
    config: dict[str, Any], plan: Plan, index: int, label: int, class_name: bytes
) -> bool:
    if not 0 <= index < plan.num_images or label != plan.labels[index]:
        return False
    return class_name.decode(errors="replace") == config["class_names"][label]
