"""What a cascade is asked to draw."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from imagen_ft.cascade import values
from imagen_ft.cascade.starts import RealImages
from imagen_ft.diffusion.stage import Stage
from imagen_ft.text.encoders import check_prompts, check_text
from launch.errors import InputError
from launch.runtime.limits import MOST_SEED

# What each field must be; all but `_NEEDED` may also be None.
KINDS = {
    "prompts": values.TEXTS,
    "labels": values.LABELS,
    "negative_prompt": values.TEXTS,
    "seed": values.SEED,
    "indices": values.ROWS,
    "positions": values.ROWS,
    "batch_size": values.INTEGER,
    "low": values.IMAGES,
    "start": values.IMAGES,
    "skip_steps": values.INTEGER,
}
_NEEDED = ("seed", "skip_steps")


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """Which images a cascade draws, by prompts or by numbers of its classes; raises InputError.

    Image n of a set depends on the seed, its index and its prompt. How sums are rounded on the way,
    and so the last bit of a pixel, also depends on the size of the batches and the row within them.
    """

    prompts: str | Sequence[str] | None = None  # one per image; a string is one image's
    _: dataclasses.KW_ONLY
    labels: np.ndarray | None = None  # instead of prompts: classes of the cascade
    # What guidance leads away from, in place of no text: one text, or one per image; '' is no text.
    # None is the cascade's own.
    negative_prompt: str | Sequence[str] | None = None
    seed: int = 0  # of the set of images, from 0 to 2**32 - 1
    # Which images of the set these are; None: the first ones.
    indices: Int[np.ndarray, " n"] | None = None
    # Each image's place in the order in which the set is drawn, which decides its row of a batch.
    # None is the order given here.
    positions: Int[np.ndarray, " n"] | None = None
    batch_size: int | None = None  # images at a time; None is the cascade's number
    # Images to enlarge, uint8 [n, size, size, c]; the first stage that runs is the one that starts
    # from this size. None starts with the base.
    low: np.ndarray | None = None
    # Images of the base's size, uint8, that it starts from, noised to the first step that is taken
    # (real guidance, He et al. 2023). None is noise.
    start: np.ndarray | RealImages | None = None
    # Steps of the base that are not taken, from the noisiest; at least 1 with a `start`.
    skip_steps: int = 0

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            value = getattr(self, name)
            if value is not None or name in _NEEDED:
                # The dataclass is frozen; its own values are converted once, here.
                object.__setattr__(self, name, kind.of(name, value))
        if isinstance(self.prompts, str):
            object.__setattr__(self, "prompts", [self.prompts])

    def __len__(self) -> int:
        """How many images are asked for."""
        rows = self.labels if self.prompts is None else self.prompts
        return 0 if rows is None else len(rows)

    def negatives(self) -> Sequence[str]:
        """The texts that stand for no text: one for all images, or one per image."""
        texts = "" if self.negative_prompt is None else self.negative_prompt
        return [texts] if isinstance(texts, str) else texts

    def describe(self, row: int, class_names: Sequence[str]) -> str:
        """An image in words, for messages: its number in the set, and its prompt or class."""
        index = row if self.indices is None else int(self.indices[row])
        if self.prompts is not None:
            return f"image {index} of the prompt {self.prompts[row]!r}"
        labels = np.asarray(self.labels)
        return f"image {index} of the class {class_names[labels[row]]!r}"

    def check(self, stages: Sequence[Stage], class_names: Sequence[str]) -> None:
        """Raises InputError unless a cascade can draw this: texts, labels, images, skipped steps.

        `class_names` are empty where any text will do.
        """
        self._check_counts()
        self._check_text(class_names)
        self._check_images(stages)
        self._check_negatives(stages)

    def first_stage(self, stages: Sequence[Stage]) -> int:
        """Number of the stage that runs first, see `low`; raises InputError if there is none."""
        sizes = [stage.denoiser.low_size for stage in stages]
        if self.low is None:
            if sizes[0]:
                raise InputError("this cascade has no base; give images to enlarge as low")
            return 0
        shape = self.low.shape
        size = shape[1] if len(shape) == 4 else 0
        if not size or size not in sizes:
            starts = " or ".join(f"{low_size} px" for low_size in sizes if low_size)
            needed = (
                f"images of {starts}" if starts else "left out, as the cascade starts from noise"
            )
            raise InputError(f"low must be {needed}, got the shape {list(shape)}")
        return sizes.index(size)

    def _check_counts(self) -> None:
        if (self.prompts is None) == (self.labels is None):
            raise InputError("give either prompts or labels, and not both")
        name = "labels" if self.prompts is None else "prompts"
        if self.labels is not None and self.labels.ndim != 1:
            raise InputError(
                "labels must be a flat list, one label per image, got the shape "
                f"{list(self.labels.shape)}"
            )
        if not len(self):
            raise InputError(f"{name} must have at least one entry, got none")
        for field, numbers in (("indices", self.indices), ("positions", self.positions)):
            if numbers is not None and len(numbers) != len(self):
                raise InputError(
                    f"{field} must have one entry for each of {len(self)} {name}, got "
                    f"{len(numbers)}"
                )
            # Keys are folded from 32 bits: beyond them two images would be the same.
            if numbers is not None and (numbers.min() < 0 or numbers.max() > MOST_SEED):
                outside = numbers[(numbers < 0) | (numbers > MOST_SEED)][0]
                raise InputError(f"{field} must be from 0 to {MOST_SEED}, got {outside}")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")

    def _check_text(self, class_names: Sequence[str]) -> None:
        if self.prompts is not None:
            check_prompts(self.prompts, class_names)
            return
        labels = np.asarray(self.labels)
        if not np.issubdtype(labels.dtype, np.integer):
            raise InputError(f"labels must be integers, the numbers of classes, got {labels.dtype}")
        if labels.min() < 0 or labels.max() >= len(class_names):
            outside = labels[(labels < 0) | (labels >= len(class_names))][0]
            raise InputError(
                f"labels must be below the cascade's {len(class_names)} classes, got {outside}"
            )

    def _check_negatives(self, stages: Sequence[Stage]) -> None:
        texts = self.negatives()
        for text in texts:
            check_text("negative_prompt", text)
        if not isinstance(self.negative_prompt, str | None) and len(texts) != len(self):
            raise InputError(
                f"negative_prompt must be one string, or one for each of {len(self)} images, got "
                f"{len(texts)}"
            )
        # A negative prompt that changes nothing is a mistake.
        run = stages[self.first_stage(stages) :]
        if any(texts) and not any(stage.reads_null_text for stage in run):
            guided = any(stage.is_guided for stage in run)
            reason = "a guide is used" if guided else "guidance_weight is 1 (off)"
            raise InputError(
                f"negative_prompt={next(filter(None, texts))!r} changes nothing: {reason} in every "
                "stage; leave it out, or change that"
            )

    def _check_images(self, stages: Sequence[Stage]) -> None:
        first, base = self.first_stage(stages), stages[0]
        if self.low is not None:
            self._check_shape("low", self.low, stages[first].denoiser.low_size, base)
            if self.start is not None or self.skip_steps:
                raise InputError(
                    "start and skip_steps are for the base, which low replaces; leave them out, "
                    "or low"
                )
        if not 0 <= self.skip_steps < base.sampler.num_steps:
            raise InputError(
                f"skip_steps must be below the base's {base.sampler.num_steps} steps, got "
                f"{self.skip_steps}"
            )
        if self.start is not None:
            self._check_shape("start", self.start, base.denoiser.image_size, base)
            if not self.skip_steps:
                raise InputError(
                    "skip_steps must be at least 1 with a start, got 0, which would ignore it; "
                    "the more are skipped, the closer to the start"
                )

    def _check_shape(
        self, name: str, images: np.ndarray | RealImages, size: int, base: Stage
    ) -> None:
        shape = (len(self), size, size, base.denoiser.image_channels)
        if not isinstance(images, RealImages):
            images = np.asarray(images)
        if images.shape != shape or images.dtype != np.uint8:
            raise InputError(
                f"{name} must be uint8 {list(shape)}, one per image, got {images.dtype} "
                f"{list(images.shape)}"
            )


def check_fields(given: Iterable[str], also: Iterable[str]) -> None:
    """Raises InputError for the first name that is no field of a request; lists `also` too."""
    names = [field.name for field in dataclasses.fields(Request) if field.name != "prompts"]
    for name in given:
        if name not in names:
            raise InputError(
                f"sample has no argument {name!r}; use one of {', '.join([*names, *also])}"
            )


class RequestTexts(NamedTuple):
    """The text states of a request, each different text once."""

    states: Float[np.ndarray, "texts n d"]  # of the different prompts
    prompt_rows: Int[np.ndarray, " images"]  # each image's row in `states`
    nulls: Float[np.ndarray, "nulls n d"]  # of the texts that stand for no text
    null_rows: Int[np.ndarray, " image_or_all"]  # each image's row in `nulls`, or one for all

    @property
    def common(self) -> dict[str, np.ndarray]:
        """The argument of `Stage.sample` that is the same for all images, if any."""
        return {"null_text": self.nulls} if len(self.nulls) == 1 else {}

    def rows(self, images: slice) -> dict[str, np.ndarray]:
        """Arguments of `Stage.sample` with one row per image, for some of the images."""
        rows = {"text": self.states[self.prompt_rows[images]]}
        if not self.common:
            rows["null_text"] = self.nulls[self.null_rows[images]]
        return rows
