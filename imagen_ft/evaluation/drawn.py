"""Images that a cascade draws when they are needed: no set is written, and nothing is done twice.

Images are kept on disk in parts until they have been measured, so an interrupted run resumes; after
that only those that pictures show stay.
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

# Of what is kept: to be raised when images change.
_FORMAT = 1
_SYNTHETIC = 1
# A part is at most so many batches and bytes, and at least one batch: hours are never at stake.
_BATCHES, _BYTES = 4, 64 << 20
_SHOWN = "shown.npz"
# Parts in memory while they are read in order.
_READ = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which images are drawn.

    Attributes:
        labels: the class of each image.
        prompts: of each class.
        seed: of the set of images: image n has the noise of this seed and n.
        size: pixels each way that images are resized to; 0 is as they are drawn.
        low: images to be enlarged, one an image of the plan, as the first stage takes them; None
            begins with noise.
        low_digest: what decides about these.
        first: the number of the first image in the set of this seed.
    """

    labels: Int32[np.ndarray, " n"]
    prompts: tuple[str, ...]
    seed: int = 0
    size: int = 0
    low: Source | None = None
    low_digest: str | None = None
    first: int = 0


class Drawn:
    """A source whose images `draw` makes; `drop` leaves only those that pictures show.

    All processes of a job make the same calls of these two, and see one folder.
    """

    def __init__(
        self,
        load: Callable[[], Cascade],
        plan: Plan,
        folder: epath.PathLike,
        name: str = "images",
    ):
        """Makes the source; the cascade is loaded, and nothing is drawn.

        Args:
            load: gives the cascade, each time that it is needed.
            plan: which images.
            folder: where all that is drawn is held, in a folder of its own; other plans and
                cascades can share it.
            name: of the images, for the progress bar.

        Raises:
            InputError: of `load`; or the cascade cannot draw such images.
        """
        cascade = load()
        self._load, self._plan, self._name = load, plan, name
        self.class_names, self.labels = plan.prompts, plan.labels
        self.domain = np.full(len(plan.labels), _SYNTHETIC, np.int32)
        stage, batch = cascade.stages[-1], cascade.batch_size
        self._request(_with_prompts(cascade, plan), np.arange(1))
        size = plan.size or stage.image_size
        if not 1 <= size <= stage.image_size:
            raise InputError(
                f"square must be 1 to {stage.image_size} pixels, which the cascade draws, got "
                f"{size}; leave it out for as many"
            )
        self._shape = (size, size, stage.denoiser.image_channels)
        few = min(_BATCHES, _BYTES // max(1, batch * int(np.prod(self._shape))))
        self._part_size = batch * max(1, few)
        self._digest = json_digest(_made_from(cascade, plan))
        self._folder = epath.Path(folder) / self._digest[:32]
        self._read = functools.lru_cache(_READ)(self._read_part)
        self._shown: dict[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: SupportsIndex) -> Example:
        """Image i, once it has been drawn."""
        number = int(i)
        image = self._read_shown().get(number)
        if image is None:
            part, row = divmod(number, self._part_size)
            image = self._read(part)[row]
        return {"image": image, "label": self.labels[number], "domain": self.domain[number]}

    def key(self, i: int) -> str:
        """The number of image i."""
        return str(i)

    def digest(self) -> str:
        """What decides about the images: weights, settings, texts, rounding, seed and labels."""
        return self._digest

    def draw(self, positions: Collection[int] | None = None) -> None:
        """Draws what is not there yet.

        Args:
            positions: of the images that are needed; None is all.

        Raises:
            InputError: the disk is full, or the cascade's own.
        """
        parts = list(range(self._num_parts))
        if positions is not None:
            parts = sorted({position // self._part_size for position in positions})
        missing = decide_on_first_process(
            lambda: [part for part in parts if not self._is_whole(part)]
        )
        if not missing:
            return
        on_first_process(lambda: self._folder.mkdir(parents=True, exist_ok=True))
        count = lambda some: sum(len(self._range(part)) for part in some)  # noqa: E731
        with tqdm(
            total=count(parts),
            initial=count(parts) - count(missing),
            desc=f"draw {self._name}",
            unit="image",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            disable=jax.process_index() > 0,
        ) as bar:
            for part, images in self._draw_parts(missing, bar.update):
                on_first_process(functools.partial(_write, self._path(part), images))

    def drop(self, shown: Collection[int]) -> None:
        """Leaves only the images that pictures show; draws them where they are not there.

        Args:
            shown: their positions.
        """
        if not decide_on_first_process(lambda: set(shown) <= self._read_shown().keys()):
            self.draw(shown)
            on_first_process(functools.partial(self._write_shown, sorted(set(shown))))
        on_first_process(self._remove_parts)
        self._shown = None

    def write_npz(self, path: epath.Path) -> None:
        """Writes all images as ADM's samplers do, for this process alone; `draw` them before."""
        images = np.concatenate([self._read_part(part) for part in range(self._num_parts)])
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = np.array(self._digest)
        with atomic_file(path) as file:
            np.savez(file, arr_0=images, arr_1=self.labels, digest=digest)

    def is_written(self, path: epath.Path) -> bool:
        """Whether a file holds these images, see `write_npz`.

        Raises:
            InputError: it holds something else.
        """
        if not path.exists():
            return False
        arrays = read_arrays(path, {"digest"}, "samples", "the images as arr_0")
        if str(arrays.get("digest")) != self._digest:
            raise InputError(f"{path} must be free or hold these images, got others; name another")
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
            return self._read_part(part).shape == (len(self._range(part)), *self._shape)
        except (EOFError, ValueError):
            return False

    def _read_part(self, part: int) -> UInt8[np.ndarray, "n h w c"]:
        with self._path(part).open("rb") as file:
            return np.load(file, allow_pickle=False)

    def _draw_parts(
        self, parts: list[int], tell: Callable[[int], Any]
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "n h w c"]]]:
        cascade = _with_prompts(self._load(), self._plan)
        indices = np.concatenate([np.asarray(self._range(part)) for part in parts])
        drawn: list[np.ndarray] = []
        waiting = iter(parts)
        part = next(waiting)
        for [images] in cascade.stream(self._request(cascade, indices)):
            tell(len(images))
            drawn += [resize(image, self._shape[0]) for image in images]
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
            except (InputError, KeyError, ValueError):  # Not there, or damaged.
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
    """A cascade that draws any text draws the plan's classes."""
    return (
        cascade if cascade.class_names else dataclasses.replace(cascade, class_names=plan.prompts)
    )


def _made_from(cascade: Cascade, plan: Plan) -> dict[str, Any]:
    """What decides about the images, for JSON."""
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
