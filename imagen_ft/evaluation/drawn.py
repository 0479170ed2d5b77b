"""Images that a cascade draws when they are needed, without writing a set.

Images are kept on disk in parts until they have been measured, so that an interrupted run resumes;
afterwards only those that pictures show stay.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any, SupportsIndex

import jax
import numpy as np
from etils import epath
from jaxtyping import Int32, UInt8
from tqdm import tqdm

from imagen_ft.cascade import Cascade, Request
from imagen_ft.cascade.provenance import provenance
from imagen_ft.metrics.npz_file import read_arrays
from input_pipeline.augment.resize import resize
from input_pipeline.source import Example, Source
from launch.errors import InputError
from launch.files import atomic_file, json_digest
from launch.runtime.devices.distributed import decide_on_first_process, on_first_process

# Version of the files on disk: raise it when images change.
_FORMAT = 1
# The `domain` of synthetic images in batches; real ones have 0.
_SYNTHETIC = 1
# A part is at most 4 batches and 64 MiB, but at least one batch: an interruption loses minutes.
_BATCHES, _BYTES = 4, 64 << 20
_SHOWN = "shown.npz"
# Parts that are cached in memory while images are read in order.
_READ = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which images are drawn."""

    labels: Int32[np.ndarray, " n"]  # the class of each image
    prompts: tuple[str, ...]  # of each class
    seed: int = 0  # image n of a set has the noise of (seed, n)
    size: int = 0  # pixels each way after resizing; 0 keeps the drawn size
    # Images to enlarge, one for each label, as the first stage takes them; None starts from noise.
    # Their checksum stands for them in the checksum of the drawn images.
    low: Source | None = None
    low_digest: str | None = None
    first: int = 0  # number of the first image in the set of this seed


class Drawn:
    """A source whose images `draw` makes; `drop` leaves only those that pictures show.

    All processes of a job must call `draw` and `drop` alike, and see the same folder.
    """

    def __init__(
        self,
        load: Callable[[], Cascade],
        plan: Plan,
        folder: epath.PathLike,
        name: str = "images",
    ):
        """Loads the cascade once, to check that it can draw such images; draws nothing.

        `load` is called again whenever images have to be drawn. `folder` may be shared with other
        plans and cascades: files lie below the checksum of these. `name` is for the progress bar.
        Raises `InputError` as `load` does, or if the cascade cannot draw the plan.
        """
        # 1. Only looked at: `load` decides what stays in memory.
        cascade = load()
        self._load, self._plan, self._name = load, plan, name
        self.class_names, self.labels = plan.prompts, plan.labels
        self.domain = np.full(len(plan.labels), _SYNTHETIC, np.int32)
        stage, batch = cascade.stages[-1], cascade.batch_size
        self._request(_with_prompts(cascade, plan), np.arange(1))
        size = plan.size or stage.image_size
        if not 1 <= size <= stage.image_size:
            raise InputError(
                f"square must be from 1 to the {stage.image_size} px that the cascade draws, got "
                f"{size}; leave it out for that size"
            )
        self._shape = (size, size, stage.denoiser.image_channels)
        # 2. The size of parts: whole batches.
        few = min(_BATCHES, _BYTES // max(1, batch * int(np.prod(self._shape))))
        self._part_size = batch * max(1, few)
        # 3. The checksum names the folder, so images of other settings are never mixed up.
        self._digest = json_digest(_made_from(cascade, plan))
        self._folder = epath.Path(folder) / self._digest[:32]
        self._read = functools.lru_cache(_READ)(self._read_part)
        self._shown: dict[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: SupportsIndex) -> Example:
        """Image i, which must have been drawn."""
        number = int(i)
        # Once dropped, only shown images are there; before that, parts hold all.
        image = self._read_shown().get(number)
        if image is None:
            part, row = divmod(number, self._part_size)
            image = self._read(part)[row]
        return {"image": image, "label": self.labels[number], "domain": self.domain[number]}

    def key(self, i: int) -> str:
        """The number of image i."""
        return str(i)

    def digest(self) -> str:
        """Checksum of what decides about the images: weights, settings, prompts, seed, labels."""
        return self._digest

    def draw(self, positions: Collection[int] | None = None) -> None:
        """Draws those images that are not on disk yet; all of them without `positions`.

        Raises `InputError` if the disk is full, or as the cascade does.
        """
        # 1. The parts that hold the images, and those of them that are missing. The first process
        # decides, because all have to draw the same batches.
        parts = list(range(self._num_parts))
        if positions is not None:
            parts = sorted({position // self._part_size for position in positions})
        missing = decide_on_first_process(
            lambda: [part for part in parts if not self._is_whole(part)]
        )
        if not missing:
            return
        on_first_process(lambda: self._folder.mkdir(parents=True, exist_ok=True))
        # 2. Draw and write part by part.
        count = lambda some: sum(len(self._range(part)) for part in some)  # noqa: E731
        with tqdm(
            total=count(parts),
            initial=count(parts) - count(missing),
            desc=f"draw {self._name}",
            unit="image",
            # Seconds; a log file gets a line only every half minute.
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            disable=jax.process_index() > 0,
        ) as bar:
            for part, images in self._draw_parts(missing, bar.update):
                on_first_process(functools.partial(_write, self._path(part), images))

    def drop(self, shown: Collection[int]) -> None:
        """Leaves only the images at the positions `shown`, which are drawn if necessary."""
        # The shown images are written before the parts are removed: an interruption loses none.
        if not decide_on_first_process(lambda: set(shown) <= self._read_shown().keys()):
            self.draw(shown)
            on_first_process(functools.partial(self._write_shown, sorted(set(shown))))
        on_first_process(self._remove_parts)
        self._shown = None

    def write_npz(self, path: epath.Path) -> None:
        """Writes all images, which must be drawn, as ADM's samplers do; for one process."""
        images = np.concatenate([self._read_part(part) for part in range(self._num_parts)])
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = np.array(self._digest)
        with atomic_file(path) as file:
            # arr_0 [n, h, w, c] uint8 and arr_1 [n] are ADM's; `digest` is ours, for `is_written`.
            np.savez(file, arr_0=images, arr_1=self.labels, digest=digest)

    def is_written(self, path: epath.Path) -> bool:
        """Whether the file of `write_npz` is there; raises `InputError` if it has others."""
        if not path.exists():
            return False
        arrays = read_arrays(path, {"digest"}, "samples", "the images as arr_0")
        if str(arrays.get("digest")) != self._digest:
            raise InputError(f"{path} has other images; choose another path")
        return True

    @property
    def _num_parts(self) -> int:
        return -(-len(self) // self._part_size)

    def _range(self, part: int) -> range:
        first = part * self._part_size
        return range(first, min(first + self._part_size, len(self)))

    def _path(self, part: int) -> epath.Path:
        return self._folder / f"part-{part:05d}.npy"

    def _is_whole(self, part: int) -> bool:
        path = self._path(part)
        if not path.exists():
            return False
        try:
            # A damaged part is drawn again.
            return self._read_part(part).shape == (len(self._range(part)), *self._shape)
        except (EOFError, ValueError):
            return False

    def _read_part(self, part: int) -> UInt8[np.ndarray, "n h w c"]:
        with self._path(part).open("rb") as file:
            return np.load(file, allow_pickle=False)

    def _draw_parts(
        self, parts: list[int], tell: Callable[[int], Any]
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "n h w c"]]]:
        # The parts are drawn as one stream, so that batches are full across their borders.
        cascade = _with_prompts(self._load(), self._plan)
        indices = np.concatenate([np.asarray(self._range(part)) for part in parts])
        drawn: list[np.ndarray] = []
        waiting = iter(parts)
        part = next(waiting)
        for [images] in cascade.stream(self._request(cascade, indices)):
            tell(len(images))
            drawn += [resize(image, self._shape[0]) for image in images]  # [h, w, c] each
            # A batch may complete several parts, and its rest belongs to the next.
            while len(drawn) >= len(self._range(part)):
                count = len(self._range(part))
                yield part, np.stack(drawn[:count])
                drawn = drawn[count:]
                if (following := next(waiting, None)) is None:
                    return
                part = following

    def _request(self, cascade: Cascade, indices: np.ndarray) -> Request:
        plan, low = self._plan, None
        if plan.low is not None:
            low = np.stack([plan.low[int(i)]["image"] for i in indices])
        numbers = plan.first + indices
        request = Request(
            labels=plan.labels[indices], seed=plan.seed, indices=numbers, positions=numbers, low=low
        )
        request.check(cascade.stages, cascade.class_names)
        return request

    def _read_shown(self) -> dict[int, np.ndarray]:
        if self._shown is None:
            path = self._folder / _SHOWN
            try:
                arrays = read_arrays(path, {"images", "positions"}, "images", "images")
                pairs = zip(arrays["positions"].tolist(), arrays["images"], strict=True)
                self._shown = dict(pairs)
            except (InputError, KeyError, ValueError):  # absent or damaged: drawn again
                self._shown = {}
        return self._shown

    def _write_shown(self, positions: list[int]) -> None:
        images = [self[position]["image"] for position in positions]
        with atomic_file(self._folder / _SHOWN) as file:
            np.savez(file, positions=np.array(positions), images=np.stack(images))
        self._shown = None

    def _remove_parts(self) -> None:
        for part in range(self._num_parts):
            self._path(part).unlink(missing_ok=True)
        self._read.cache_clear()


def _write(path: epath.Path, images: UInt8[np.ndarray, "n h w c"]) -> None:
    with atomic_file(path) as file:
        np.lib.format.write_array(file, images, allow_pickle=False)


def _with_prompts(cascade: Cascade, plan: Plan) -> Cascade:
    # A cascade without class names takes any text: it gets the plan's.
    return (
        cascade if cascade.class_names else dataclasses.replace(cascade, class_names=plan.prompts)
    )


def _made_from(cascade: Cascade, plan: Plan) -> dict[str, Any]:
    """All that decides about the images, as JSON."""
    # Only these fields of the config change images; others, such as batch_size, do not.
    fields = ("class_names", "negative_prompt", "stages", "text")
    config = {name: cascade.config[name] for name in fields if name in cascade.config}
    return {
        "format": _FORMAT,
        **provenance(type(cascade.config)(config), cascade),
        "prompts": list(plan.prompts),
        "labels": json_digest(plan.labels.tolist()),
        "seed": plan.seed,
        "size": plan.size,
        "low": plan.low_digest,
        "first": plan.first,
    }
