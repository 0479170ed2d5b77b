"""Images drawn by a stage while it trains, measured as `imagen_ft.evaluate` measures them."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence

import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from classifiers.extractors.extractor import Extractor
from classifiers.extractors.features import feature_batches
from imagen_ft.cascade import Cascade, Request
from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.from_config import make_alone, make_denoiser
from imagen_ft.evaluation.extractors import Kind, check_extractor, open_extractor
from imagen_ft.evaluation.image_sets import ImageSet
from imagen_ft.evaluation.measures import MEASURES, NAMES, Images, Measures, Real
from imagen_ft.evaluation.references import References, check_references, open_references
from imagen_ft.evaluation.sampled import BALANCED, class_of_each, enlarged
from imagen_ft.evaluation.seeing import as_images, check_measures, conditions, see, taps_for
from input_pipeline.source import ArraySource, Source
from launch.errors import Diverged, InputError
from launch.fields import Fields
from launch.runtime.config import plain
from launch.runtime.limits import BATCH, MOST, check_numbers
from launch.runtime.state import TrainState
from launch.runtime.types import Variables

_FIELD = "config.evaluation_metric"
_LIMITS = {"every": (0, MOST), "num_images": (1, MOST), "batch_size": BATCH}
# Batches of images held at a time; of all images only the features stay.
_BATCHES = 8


def metric_name(config: Fields) -> str:
    """What the metric is logged as, and may be chosen by: 'sampled_fid', ..."""
    on_inception = not check_extractor(config["extractor"]).suffix
    name = NAMES[config["measure"]][0 if on_inception else 1]
    return f"sampled_{name.replace(' ', '_')}"


def is_measured(config: ml_collections.ConfigDict) -> bool:
    """Whether a config asks for the metric; without, or with `every` at 0, it costs nothing."""
    return bool((config.get("evaluation_metric") or {}).get("every", 0))


def check_metric(config: ml_collections.ConfigDict) -> None:
    """Raises InputError where a field is missing or wrong; opens no file."""
    if not is_measured(config):
        return
    # 1. The fields.
    fields = config.evaluation_metric
    needed = ("measure", "num_images", "batch_size", "extractor", "sampling")
    if missing := [name for name in needed if name not in fields]:
        raise InputError(f"{_FIELD} needs the field {missing[0]!r}; set it, or every=0")
    if fields.measure not in NAMES:
        raise InputError(
            f"{_FIELD}.measure must be one of {', '.join(NAMES)}, got {fields.measure!r}"
        )
    if MEASURES[fields.measure].has_arguments and fields.measure not in fields:
        raise InputError(
            f"{_FIELD} needs the arguments of {fields.measure!r} in a field of that name"
        )
    check_numbers(fields, _LIMITS, _FIELD)
    # 2. What `imagen_ft.evaluate` would check.
    with _named():
        check_extractor(fields.extractor)
        make_alone(fields.sampling, make_denoiser(config.stage))
        check_references(_as_evaluation(config))
    check_measures(f"{_FIELD}.measure", (fields.measure,), fields.extractor.name)


@dataclasses.dataclass(frozen=True)
class SampledMetric:
    """Draws images with a state's weights and measures them; every process must call it."""

    config: ml_collections.ConfigDict
    mesh: Mesh  # of the training: its devices draw together
    workdir: epath.Path  # of the run, which also keeps features of the real images
    prompts: tuple[str, ...]  # one per class
    # Real images: super-resolution enlarges them, and all images are compared with them where
    # `config.evaluation_metric.reference` names no others.
    held_out: Source
    text: Float[np.ndarray, "classes n d"]  # of every class's prompt
    null_text: Float[np.ndarray, "n d"]  # stands for no text
    # Makes of a state's variables those that the denoiser is called with.
    network: Callable[[Variables], Variables]

    def __call__(self, state: TrainState) -> dict[str, float]:
        """The metric of a state's main average, by name; NaN where images are not finite."""
        name = metric_name(self._fields)
        try:
            images = self._draw(self.network(state.inference_variables))
        except Diverged as error:
            # The run continues: only this value is lost.
            warnings.warn(f"no {name} of step {int(state.step)}: {error}", stacklevel=1)
            return {name: float("nan")}
        return {name: self._measure(images)}

    def open(self) -> None:
        """Opens extractor and real images; raises InputError before anything is written."""
        _ = self._references, self._low

    def prepare(self) -> None:
        """Looks at the real images and measures noise, so that nothing fails later in training."""
        # 1. What the extractor makes of one black image: names and shapes of its outputs.
        size = make_alone(self._fields.sampling, self._denoiser).image_size
        shape = size, size, self._denoiser.image_channels
        [one] = self._see(np.zeros((1, *shape), np.uint8))
        # 2. Noise of that shape, measured as if it were features.
        rng, count = np.random.default_rng(0), len(self._labels)
        noise = {
            tap: rng.normal(size=(count, *values.shape[1:])).astype(np.float32)
            for tap, values in one.items()
        }
        self._measure(as_images(noise, self._labels, len(self.prompts), self._kind))

    def _measure(self, images: Images) -> float:
        common = conditions(self._extractor, images, "round", "none")
        evaluation = _as_evaluation(self.config)
        with _named():
            measured = Measures(evaluation, images, self._real, common).take("", lambda name: None)
        return measured.results[0].value

    @property
    def _fields(self) -> ml_collections.ConfigDict:
        return self.config.evaluation_metric

    @functools.cached_property
    def _kind(self) -> Kind:
        return check_extractor(self._fields.extractor)

    @functools.cached_property
    def _extractor(self) -> Extractor:
        with _named():
            return open_extractor(self._fields.extractor)

    @functools.cached_property
    def _denoiser(self) -> Denoiser:
        """For whole images, even where the stage trains on crops."""
        return make_denoiser(self.config.stage)

    @functools.cached_property
    def _references(self) -> References:
        mixed = self._extractor.transform is not None
        with _named():
            return open_references(_as_evaluation(self.config), self._extractor, mixed)

    @functools.cached_property
    def _real(self) -> Real:
        measures = (self._fields.measure,)

        def look(images: ImageSet) -> Images:
            folder = self.workdir / "features"
            batch_size = self._fields.batch_size
            return see(images, self._extractor, self._kind, measures, folder, batch_size)

        with _named():
            return self._references.real(look, self._references.digests())

    @functools.cached_property
    def _low(self) -> Source | None:
        """Real images that a super-resolution stage enlarges."""
        if not self._denoiser.low_size:
            return None
        images = ImageSet("low", self.held_out, "unknown", "unknown")
        sizes = self._denoiser.low_size, self._denoiser.size
        count = self._fields.num_images
        with _named():
            return enlarged(images, *sizes, self.prompts, BALANCED, count, self.config.seed)[0]

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        if self._low is not None:
            return self._low.labels
        count, classes = self._fields.num_images, len(self.prompts)
        return class_of_each(BALANCED, count, classes, None, self.config.seed)

    def _draw(self, variables: Variables) -> Images:
        """What the extractor sees in the images, in order."""
        batches = [batch for part in self._parts(variables) for batch in self._see(part)]
        outputs = {tap: np.concatenate([batch[tap] for batch in batches]) for tap in batches[0]}
        return as_images(outputs, self._labels, len(self.prompts), self._kind)

    def _see(self, images: UInt8[np.ndarray, "n h w c"]) -> Iterator[dict[str, np.ndarray]]:
        """Outputs of the extractor by tap, batch by batch."""
        source = ArraySource(images, np.zeros(len(images), np.int32), ("all",))
        taps = taps_for((self._fields.measure,), self._kind)
        with _named():
            yield from feature_batches(self._extractor, source, taps, self._fields.batch_size)

    def _parts(self, variables: Variables) -> Iterator[UInt8[np.ndarray, "n h w c"]]:
        """The images, some batches at a time; each depends on the run's seed and its number."""
        # A cascade around the weights in training: drawn as they will be later.
        cascade = Cascade(
            stages=(make_alone(self._fields.sampling, self._denoiser),),
            variables=(variables,),
            encoder=_Table(self.prompts, self.text, self.null_text),
            class_names=self.prompts,
            digests=("",),
            config=ml_collections.ConfigDict({"stages": {"stage": {"stage": self.config.stage}}}),
            batch_size=self._fields.batch_size,
            mesh=self.mesh,
        )
        size = _BATCHES * self._fields.batch_size
        for first in range(0, len(self._labels), size):
            numbers = np.arange(first, min(first + size, len(self._labels)))
            # Each batch reads the images that it enlarges.
            low = None
            if self._low is not None:
                low = np.stack([self._low[int(i)]["image"] for i in numbers])
            request = Request(
                labels=self._labels[numbers], indices=numbers, seed=self.config.seed, low=low
            )
            yield np.concatenate([images for [images] in cascade.stream(request)])


def _as_evaluation(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config for `imagen_ft.evaluate`; by default the held-out images are the real ones."""
    fields = plain(config.evaluation_metric)
    sampling = config.evaluation_metric.sampling
    size = make_alone(sampling, make_denoiser(config.stage)).image_size
    held_out = dict(source=plain(config.evaluation_source), square=size)
    reference = dict(statistics="", source=None, held_out=None) | (fields.get("reference") or {})
    if not (reference["statistics"] or reference["source"]):
        reference["source"] = held_out
    fields |= dict(measures=(fields["measure"],), reference=reference)
    return ml_collections.ConfigDict({"allow_few_images": False, **fields})


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """A block in which messages about wrong input name the field of this config."""
    try:
        yield
    except InputError as error:
        text = str(error)
        below = text.removeprefix("config.")
        raise InputError(f"{_FIELD}: {text}" if below == text else f"{_FIELD}.{below}") from None


@dataclasses.dataclass(frozen=True)
class _Table:
    """A text encoder that looks prompts up in states computed before."""

    prompts: tuple[str, ...]
    states: Float[np.ndarray, "classes n d"]
    null_states: Float[np.ndarray, "n d"]
    digest: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        return self.null_states.shape[0], self.null_states.shape[1]

    def embed(self, prompts: Sequence[str], nulls: Sequence[str] = ()) -> np.ndarray:
        rows = [self.states[self.prompts.index(prompt)] for prompt in prompts]
        return np.stack([*rows, *[self.null_states] * len(nulls)]).astype(np.float32)

    def null(self) -> np.ndarray:
        return self.null_states[None].astype(np.float32)

    def parameters(self) -> dict:
        return {}
