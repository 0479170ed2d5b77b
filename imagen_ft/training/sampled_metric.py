"""What a stage draws while it is trained, measured as `imagen_ft.evaluate` measures it."""

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
# Images are held for so many batches at a time; of all only the features stay.
_BATCHES = 8


def metric_name(config: Fields) -> str:
    """What `config.evaluation_metric` is logged as, and may be chosen by: 'sampled_fid', ..."""
    on_inception = not check_extractor(config["extractor"]).suffix
    name = NAMES[config["measure"]][0 if on_inception else 1]
    return f"sampled_{name.replace(' ', '_')}"


def is_measured(config: ml_collections.ConfigDict) -> bool:
    """Whether a run's config asks for it: without, or with `every` at 0, it costs nothing."""
    return bool((config.get("evaluation_metric") or {}).get("every", 0))


def check_metric(config: ml_collections.ConfigDict) -> None:
    """Looks at `config.evaluation_metric` without opening any file.

    Raises:
        InputError: a field is missing or wrong.
    """
    if not is_measured(config):
        return
    fields = config.evaluation_metric
    needed = ("measure", "num_images", "batch_size", "extractor", "sampling")
    if missing := [name for name in needed if name not in fields]:
        raise InputError(f"{_FIELD} needs the field {missing[0]!r}; set it, or every=0")
    if fields.measure not in NAMES:
        raise InputError(
            f"{_FIELD}.measure must be one of {', '.join(NAMES)}, got {fields.measure!r}; name one"
        )
    if MEASURES[fields.measure].has_arguments and fields.measure not in fields:
        raise InputError(
            f"{_FIELD} needs the arguments of {fields.measure!r} in a field of its name"
        )
    check_numbers(fields, _LIMITS, _FIELD)
    with _named():
        check_extractor(fields.extractor)
        make_alone(fields.sampling, make_denoiser(config.stage))
        check_references(_as_evaluation(config))
    check_measures(f"{_FIELD}.measure", (fields.measure,), fields.extractor.name)


@dataclasses.dataclass(frozen=True)
class SampledMetric:
    """Draws images with the weights of a state, and measures them; every process has to call it.

    Attributes:
        config: of the run.
        mesh: of the training: its devices draw together.
        workdir: of the run; features of the real images are kept in it.
        prompts: of each class.
        held_out: real images, which super-resolution enlarges, and which all are compared with
            where `config.evaluation_metric.reference` names none.
        text: states of every class's prompt.
        null_text: states that stand for no text.
        network: of a state's variables those that the denoiser is called with.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    workdir: epath.Path
    prompts: tuple[str, ...]
    held_out: Source
    text: Float[np.ndarray, "classes n d"]
    null_text: Float[np.ndarray, "n d"]
    network: Callable[[Variables], Variables]

    def __call__(self, state: TrainState) -> dict[str, float]:
        """The metric of a state's main average by its name; NaN where images are not finite.

        Raises:
            InputError: the extractor or the real images are missing, damaged or do not fit.
        """
        name = metric_name(self._fields)
        try:
            images = self._draw(self.network(state.inference_variables))
        except Diverged as error:
            warnings.warn(f"no {name} of step {int(state.step)}: {error}", stacklevel=1)
            return {name: float("nan")}
        return {name: self._measure(images)}

    def open(self) -> None:
        """Opens the extractor and the real images, so that faults come before anything is begun.

        Raises:
            InputError: they are missing, damaged or do not fit.
        """
        _ = self._references, self._low

    def prepare(self) -> None:
        """Looks at the real images, and measures noise: so that nothing fails in mid-training.

        Raises:
            InputError: the extractor does not take the images, or a number of them is too small.
        """
        size = make_alone(self._fields.sampling, self._denoiser).image_size
        shape = size, size, self._denoiser.image_channels
        [one] = self._see(np.zeros((1, *shape), np.uint8))
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
        """At the size of the stage's images, whatever parts of them it is trained on."""
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
        """Real images that a stage of super-resolution enlarges."""
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
        """The images, a few batches at a time: each depends on the run's seed and its number."""
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
            low = None
            if self._low is not None:
                low = np.stack([self._low[int(i)]["image"] for i in numbers])
            request = Request(
                labels=self._labels[numbers], indices=numbers, seed=self.config.seed, low=low
            )
            yield np.concatenate([images for [images] in cascade.stream(request)])


def _as_evaluation(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """What `imagen_ft.evaluate` would be told; real images are the held-out ones by default."""
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
    """A block in which messages of wrong input name the field of this config."""
    try:
        yield
    except InputError as error:
        text = str(error)
        below = text.removeprefix("config.")
        raise InputError(f"{_FIELD}: {text}" if below == text else f"{_FIELD}.{below}") from None


@dataclasses.dataclass(frozen=True)
class _Table:
    """A text encoder whose states are there already."""

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
