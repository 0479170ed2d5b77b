"""Cascades: from prompts to images, one diffusion model after the other."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, UInt8

from imagen_ft.cascade import values
from imagen_ft.cascade.changes import FOR_A_CALL, changed
from imagen_ft.cascade.drawing import Drawing
from imagen_ft.cascade.finite import checked
from imagen_ft.cascade.imported import as_imported
from imagen_ft.cascade.loading import load_stages, with_dtypes
from imagen_ft.cascade.opened import Opened, as_config, with_t5
from imagen_ft.cascade.request import Request, RequestTexts, check_fields
from imagen_ft.cascade.starts import RealImages
from imagen_ft.cascade.values import Kind
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.diffusion.stage import Stage
from imagen_ft.text.encoders import TextEncoder, check_prompts, check_text, make_text_encoder
from input_pipeline import class_names
from launch.runtime.config import reading
from launch.runtime.devices.mesh import fetch_behind, make_mesh
from launch.runtime.limits import BATCH, check_numbers
from launch.runtime.types import Array

_REQUEST = Kind("a Request (sample takes prompts)", values.only(Request))


@dataclasses.dataclass(frozen=True, repr=False)
class Cascade:
    """A base stage and the super-resolution stages behind it.

    Attributes:
        stages: in order of size.
        variables: of each stage.
        encoder: of the prompts.
        class_names: the prompts it was trained with; empty where any text will do.
        digests: of each stage's weights.
        batch_size: how many images are drawn at a time, unless a request or a stage has its own
            number; with a mesh the next multiple of its devices.
        config: what it was loaded from, changes included.
        mesh: of the devices that draw together, each a part of a batch; all processes of a job
            then have to make the same calls. None is one device.
    """

    stages: tuple[Stage, ...]
    variables: tuple[dict[str, Any], ...]
    encoder: TextEncoder
    class_names: tuple[str, ...]
    digests: tuple[str, ...]
    config: ml_collections.ConfigDict
    batch_size: int = 100
    mesh: Mesh | None = None

    def __repr__(self) -> str:
        lines = [f"{name}: {stage.describe()}" for name, stage in self._named_stages(0).items()]
        classes = f"{len(self.class_names)} classes" if self.class_names else "any prompt"
        return f"Cascade({classes}, batches of {self.batch_size}; {'; '.join(lines)})"

    @classmethod
    def load(
        cls,
        config: Opened,
        prompts: str | Sequence[str] = (),
        *,
        mesh: Mesh | Mapping[str, int] | None = None,
        text: str | None = None,
        **changes: Any,
    ) -> "Cascade":
        """Loads a cascade, whatever names it.

        Args:
            config: of `imagen_ft.sample`, or its file and arguments, such as
                'configs/digits/sample.py' (from any folder); or a run of imagen_ft.finetune, or
                weights of DeepFloyd IF, a folder or a repository of the Hub such as
                'DeepFloyd/IF-I-M-v1.0'; or a list of these, a stage each. A run is sampled as the
                pictures of its training; weights as 'configs/deepfloyd/sample.py'. Without a base
                the cascade enlarges what `sample` gets as `low`.
            prompts: that are known to come; see `load_cascade`.
            mesh: of the devices that draw together, or the size of its axes, such as
                `{"data": -1}`; None is one device.
            text: weights with T5, as `config`: it embeds any prompt, and is loaded when the first
                one comes. None is the encoder of the config, which may be a cache.
            **changes: as for `with_`; and `run`, `ema`, `best`, `variant`, `lora`, `guide` and
                `dtype` (of the computation), which decide about the weights:
                `stages={"base4": dict(run="gs://mine/base4")}`.

        Raises:
            InputError: see `load_cascade`; or a change has an unknown name or a wrong value.
        """
        config = as_config(config)
        known = values.TEXTS.of("prompts", prompts)
        devices = None if mesh is None else values.MESH.of("mesh", mesh)
        if text is not None:
            config = with_t5(config, values.PATH.of("text", text))
        with reading(config):
            config = as_imported(with_dtypes(changed(config, changes, loading=True)))
        if isinstance(devices, Mapping):
            devices = make_mesh(devices)
        with reading(config):
            prompts = [known] if isinstance(known, str) else known
            return load_cascade(config, devices, prompts, base=False)

    def with_(self, **changes: Any) -> "Cascade":
        """The same weights with another way of sampling: `with_(guidance_weight=2.0)`.

        A program is compiled for each sampler and number of steps, with guidance and without, when
        it first draws, and kept: other weights, variances and levels of noise cost nothing.

        Args:
            **changes: of all stages: `sampler`, `num_steps`, `spacing`, numbers of the sampler's
                own (see `sampler_from_config.make_sampler`; another sampler's strength of noise
                is not kept where it has no such noise), `guidance_weight`,
                `guidance_interval`, `guidance_schedule`, `guidance_rescale`, `cads_scale`,
                `cads_interval`, `cads_mix`, `threshold_percentile`, `threshold_maximum` and, of
                the stages that enlarge, `noise_augmentation`; of one stage, by the name that the
                config gives it: `stages={"sr256": dict(num_steps=30)}`. `batch_size` is the
                cascade's number, within `stages` a stage's own.

        Raises:
            InputError: a name is unknown, or a value is what a config may not say either.
        """
        config = changed(self.config, changes, loading=False)
        check_numbers(config, {"batch_size": BATCH})
        with reading(config):
            base = not self.stages[0].denoiser.low_size
            stages = tuple(make_stages(config, base).values())
        return dataclasses.replace(self, stages=stages, config=config, batch_size=config.batch_size)

    @overload
    def sample(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        every_stage: Literal[False] = False,
        progress: Callable[[int], object] | None = None,
        **fields: Any,
    ) -> np.ndarray: ...

    @overload
    def sample(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        every_stage: Literal[True],
        progress: Callable[[int], object] | None = None,
        **fields: Any,
    ) -> list[np.ndarray]: ...

    def sample(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        every_stage: bool = False,
        progress: Callable[[int], object] | None = None,
        **fields: Any,
    ) -> np.ndarray | list[np.ndarray]:
        """Draws all images of a request: `sample("a goldfish", seed=1, guidance_weight=2.0)`.

        Without a `batch_size` of its own, a request of fewer images than the cascade's is drawn in
        one batch of as many: that takes no longer than it has to, and rounds in its own way.

        Args:
            prompts: one an image; a text is one image's.
            every_stage: whether to return the images of all stages that were run, in their order.
            progress: called with the number of images finished, after each batch.
            **fields: the other fields of `Request`: `seed`, `low` to enlarge images, ...; and the
                changes of `with_` but for `batch_size`, for this call alone.

        Returns:
            The images of the last stage, uint8 [n, size, size, c] in [0, 255].

        Raises:
            InputError: see `Request.check` and `with_`; or a field has an unknown name.
            Diverged: see `stream`.
        """
        changes = {name: fields.pop(name) for name in FOR_A_CALL if name in fields}
        if changes:
            self = self.with_(**changes)
        check_fields(fields, FOR_A_CALL)
        if progress is not None:
            progress = values.FUNCTION.of("progress", progress)
        request, batches = Request(prompts, **fields), []
        if request.batch_size is None:
            size = min(self.batch_size, len(request))
            request = dataclasses.replace(request, batch_size=size)
        for batch in self.stream(request, every_stage):
            batches.append(batch)
            if progress is not None:
                progress(len(batch[-1]))
        stages = [np.concatenate(images) for images in zip(*batches, strict=True)]
        return stages if every_stage else stages[-1]

    def stream(self, request: Request, every_stage: bool = False) -> Iterator[list[np.ndarray]]:
        """Draws a request batch by batch: one is on its way while the one before it is used.

        Every batch is filled up to one size, and an image has the same row in it whatever else is
        asked for: with the same `rounding` it is the same to the last bit.

        Args:
            request: what to draw.
            every_stage: whether to yield the images of all stages that are run.

        Returns:
            An iterator over batches: images of the last stage alone or of every stage, uint8
            [b, size, size, c] in [0, 255].

        Raises:
            InputError: see `Request.check`; at once, not with the first batch.
            Diverged: in place of a batch of which a stage has left the finite numbers.
        """
        request = self._completed(_REQUEST.of("request", request))
        shown = slice(None) if every_stage else slice(-1, None)
        batches = ((stages[shown], finite) for stages, finite in self._batches(request))
        run = self._named_stages(request.first_stage(self.stages))
        return checked(fetch_behind(batches), run, request, self.class_names)

    def rounding(self) -> dict[str, Any]:
        """What decides, besides a request, how the sums behind an image are rounded; as JSON.

        How many devices split a batch does not, where each has as many images: only that they do.
        """
        return self._drawing.rounding(self.batch_size)

    def path(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        negative_prompt: str | Sequence[str] | None = None,
        start: np.ndarray | RealImages | None = None,
        skip_steps: int = 0,
    ) -> UInt8[np.ndarray, "steps n size size c"]:
        """How the base comes to the images that `sample` draws: its predictions, step by step.

        Args:
            prompts: see `Request`, as the others.
            seed: of the images.
            negative_prompt: what stands for no text.
            start: images that it begins with.
            skip_steps: steps that are not taken, and not shown.

        Raises:
            InputError: see `Request.check`.
            Diverged: see `stream`.
        """
        given: dict[str, Any] = dict(negative_prompt=negative_prompt, start=start)
        request = self._completed(Request(prompts, seed=seed, skip_steps=skip_steps, **given))
        steps, finite = self._drawing.path(request, self._embed(request))
        base = self._named_stages(0, 1)
        return next(checked([(steps, [finite])], base, request, self.class_names))

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.stages, self.variables, self.mesh)

    def _completed(self, request: Request) -> Request:
        """A request that has been looked at, with what it leaves to the cascade."""
        if request.negative_prompt is None:
            own = self.config.get("negative_prompt", "")
            request = dataclasses.replace(request, negative_prompt=own)
        request.check(self.stages, self.class_names)
        return request

    def _batches(
        self, request: Request
    ) -> Iterator[tuple[list[UInt8[Array, "b size size c"]], list[Bool[Array, " b"]]]]:
        """See `Drawing.batches`; texts are embedded when the first one is asked for."""
        size = self.batch_size if request.batch_size is None else request.batch_size
        yield from self._drawing.batches(request, self._embed(request), size)

    def _embed(self, request: Request) -> RequestTexts:
        if request.prompts is None:
            texts, rows = list(self.class_names), np.asarray(request.labels)
        else:
            unique, rows = np.unique(list(request.prompts), return_inverse=True)
            texts = unique.tolist()
        nulls, null_rows = np.unique(list(request.negatives()), return_inverse=True)
        states = self.encoder.embed(texts, nulls.tolist())
        return RequestTexts(states[: len(texts)], rows, states[len(texts) :], null_rows)

    def _named_stages(self, first: int, last: int | None = None) -> dict[str, Stage]:
        """Some of the stages, by their names in the config."""
        names = {entry.stage.low_size: name for name, entry in self.config.stages.items()}
        some = self.stages[first:last]
        return {names.get(s.denoiser.low_size, str(s.image_size)): s for s in some}


def load_cascade(
    config: ml_collections.ConfigDict,
    mesh: Mesh | None = None,
    prompts: Sequence[str] = (),
    base: bool = True,
) -> Cascade:
    """Loads the cascade of a config: its text encoder, its classes and its stages.

    Args:
        config: of the task, after `imported.as_imported`; `stages` as for `loading.load_stages`;
            `negative_prompt`, where it has it, is that of the requests that name none.
        mesh: where the cascade is to be; None is one device.
        prompts: that are known to come: a T5 that does not stay embeds them before the stages are
            loaded, and never shares the device with them.
        base: whether the first stage has to begin with noise alone; else it may enlarge images that
            are given (`Request.low`).

    Raises:
        InputError: see `loading.load_stages`; a prompt is not of the cascade's classes; a cache of
            text states lacks one, or `config.negative_prompt`; or `batch_size` is less than 1.
    """
    check_numbers(config, {"batch_size": BATCH})
    encoder = make_text_encoder(config.text)
    names = class_names.resolve(config.class_names)
    check_prompts(prompts, names)
    texts = list(dict.fromkeys([*names, *prompts]))
    nulls = [text] if (text := config.get("negative_prompt", "")) else []
    for text in nulls:
        check_text("config.negative_prompt", text)
    if texts or nulls:
        encoder.embed(texts, nulls)  # A prompt that a cache lacks is found before any work.
    stages, variables, digests = load_stages(config, encoder, mesh, base)
    return Cascade(stages, variables, encoder, names, digests, config, config.batch_size, mesh)
