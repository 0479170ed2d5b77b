"""Cascades: from prompts to images through several diffusion models."""

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
    """A base stage and the super-resolution stages after it."""

    stages: tuple[Stage, ...]  # ordered by size
    variables: tuple[dict[str, Any], ...]  # of each stage
    encoder: TextEncoder
    class_names: tuple[str, ...]  # the prompts it was trained with; () where any text will do
    digests: tuple[str, ...]  # checksums of each stage's weights
    config: ml_collections.ConfigDict  # what it was loaded from, with its changes
    # Images at a time, unless a request or a stage sets its own; with a mesh, rounded up to a
    # multiple of its devices.
    batch_size: int = 100
    # Devices that share each batch; then all processes of a job must make the same calls. None is
    # one device.
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
        """Loads a cascade from a config, a run or public weights.

        Args:
            config: of `imagen_ft.sample`, or its file and arguments, such as
                'configs/digits/sample.py' (found from any folder); or a run of imagen_ft.finetune,
                or weights of DeepFloyd IF, a folder or a Hub repository such as
                'DeepFloyd/IF-I-M-v1.0'; or a list of these, one per stage. A run is sampled like
                its training pictures, weights like 'configs/deepfloyd/sample.py'. Without a base
                the cascade enlarges what `sample` gets as `low`.
            prompts: known in advance; see `load_cascade`.
            mesh: devices that share each batch, or the size of its axes, such as `{"data": -1}`;
                None is one device.
            text: weights with T5, named like `config`: it embeds any prompt and is loaded when the
                first one comes. None is the config's encoder, which may be a cache.
            **changes: see `with_`; and `run`, `ema`, `best`, `variant`, `lora`, `guide` and `dtype`
                (of the computation), which decide about the weights:
                `stages={"base4": dict(run="gs://mine/base4")}`.

        Raises:
            InputError: see `load_cascade`; or a change has an unknown name or a wrong value.
        """
        # 1. The arguments.
        config = as_config(config)
        known = values.TEXTS.of("prompts", prompts)
        devices = None if mesh is None else values.MESH.of("mesh", mesh)
        # 2. The config, with every change in it, so that it says what is drawn.
        if text is not None:
            config = with_t5(config, values.PATH.of("text", text))
        with reading(config):
            config = as_imported(with_dtypes(changed(config, changes, loading=True)))
        # 3. The mesh and the weights.
        if isinstance(devices, Mapping):
            devices = make_mesh(devices)
        with reading(config):
            prompts = [known] if isinstance(known, str) else known
            return load_cascade(config, devices, prompts, base=False)

    def with_(self, **changes: Any) -> "Cascade":
        """The same weights sampled in another way: `with_(guidance_weight=2.0)`.

        A program is compiled for each sampler, number of steps, and with or without guidance, at
        its first use, and kept; other weights, variances and noise levels cost nothing.

        For all stages: `sampler`, `num_steps`, `spacing`, the sampler's own numbers (see
        `sampler_from_config.make_sampler`; a strength of noise that a new sampler lacks is
        dropped), `guidance_weight`, `guidance_interval`, `guidance_schedule`, `guidance_rescale`,
        `cads_scale`, `cads_interval`, `cads_mix`, `threshold_percentile`, `threshold_maximum`, and
        in super-resolution `noise_augmentation`. For one stage, by its name in the config:
        `stages={"sr256": dict(num_steps=30)}`. `batch_size` is the cascade's, within `stages` a
        stage's own. An unknown name or a wrong value raises InputError.
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

        `progress` is called with the number of images finished after each batch. `fields` are the
        other fields of `Request` (`seed`, `low` to enlarge images, ...) and the changes of `with_`
        except `batch_size`, for this call alone.

        Returns:
            The images of the last stage, uint8 [n, size, size, c] in [0, 255]; with `every_stage` a
            list with those of each stage that was run, in order.

        Raises:
            InputError: see `Request.check` and `with_`; or a field has an unknown name.
            Diverged: see `stream`.
        """
        # 1. Changes of this call apply to a copy of the cascade.
        changes = {name: fields.pop(name) for name in FOR_A_CALL if name in fields}
        if changes:
            self = self.with_(**changes)
        check_fields(fields, FOR_A_CALL)
        if progress is not None:
            progress = values.FUNCTION.of("progress", progress)
        # 2. A request smaller than a batch is drawn as one batch of its size: faster, but sums may
        # round in another way than within a full batch.
        request, batches = Request(prompts, **fields), []
        if request.batch_size is None:
            size = min(self.batch_size, len(request))
            request = dataclasses.replace(request, batch_size=size)
        # 3. Draw.
        for batch in self.stream(request, every_stage):
            batches.append(batch)
            if progress is not None:
                progress(len(batch[-1]))
        stages = [np.concatenate(images) for images in zip(*batches, strict=True)]
        return stages if every_stage else stages[-1]

    def stream(self, request: Request, every_stage: bool = False) -> Iterator[list[np.ndarray]]:
        """Draws a request batch by batch; the next one is computed while the caller uses the last.

        Every batch is padded to one size, and an image has the same row in it whatever else is
        asked for: with the same `rounding` it is the same to the last bit.

        Returns:
            An iterator over batches: the images of the last stage, or with `every_stage` of each,
            uint8 [b, size, size, c] in [0, 255].

        Raises:
            InputError: see `Request.check`; at the call, not with the first batch.
            Diverged: in place of a batch in which a stage drew NaN or infinity.
        """
        request = self._completed(_REQUEST.of("request", request))
        # Stages that nobody asked for stay on the device.
        shown = slice(None) if every_stage else slice(-1, None)
        batches = ((stages[shown], finite) for stages, finite in self._batches(request))
        run = self._named_stages(request.first_stage(self.stages))
        return checked(fetch_behind(batches), run, request, self.class_names)

    def rounding(self) -> dict[str, Any]:
        """What decides, besides the request, how the sums behind an image are rounded; for JSON."""
        return self._drawing.rounding(self.batch_size)

    def path(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        negative_prompt: str | Sequence[str] | None = None,
        start: np.ndarray | RealImages | None = None,
        skip_steps: int = 0,
    ) -> UInt8[np.ndarray, "steps n size size c"]:
        """How the base gets to the images that `sample` draws: its predictions of x_0 at each step.

        See `Request` for the arguments, and `stream` for errors; skipped steps are not shown.
        """
        given: dict[str, Any] = dict(negative_prompt=negative_prompt, start=start)
        request = self._completed(Request(prompts, seed=seed, skip_steps=skip_steps, **given))
        # All images are one batch: every step of every image is held.
        steps, finite = self._drawing.path(request, self._embed(request))
        base = self._named_stages(0, 1)
        return next(checked([(steps, [finite])], base, request, self.class_names))

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.stages, self.variables, self.mesh)

    def _completed(self, request: Request) -> Request:
        """A checked request, with the cascade's own negative prompt where it has none."""
        if request.negative_prompt is None:
            own = self.config.get("negative_prompt", "")
            request = dataclasses.replace(request, negative_prompt=own)
        # Before any work, and for `stream` before the first batch is asked for.
        request.check(self.stages, self.class_names)
        return request

    def _batches(
        self, request: Request
    ) -> Iterator[tuple[list[UInt8[Array, "b size size c"]], list[Bool[Array, " b"]]]]:
        """See `Drawing.batches`; texts are embedded when the first batch is asked for."""
        # The request's own number wins: `sample` sets it for small requests.
        size = self.batch_size if request.batch_size is None else request.batch_size
        yield from self._drawing.batches(request, self._embed(request), size)

    def _embed(self, request: Request) -> RequestTexts:
        if request.prompts is None:
            # Each different text is embedded once: a set has many images of few prompts.
            texts, rows = list(self.class_names), np.asarray(request.labels)
        else:
            unique, rows = np.unique(list(request.prompts), return_inverse=True)
            texts = unique.tolist()
        nulls, null_rows = np.unique(list(request.negatives()), return_inverse=True)
        states = self.encoder.embed(texts, nulls.tolist())
        return RequestTexts(states[: len(texts)], rows, states[len(texts) :], null_rows)

    def _named_stages(self, first: int, last: int | None = None) -> dict[str, Stage]:
        """Some of the stages, by their names in the config."""
        # `stages` is sorted and unnamed; each starts from another size, which tells its name.
        names = {entry.stage.low_size: name for name, entry in self.config.stages.items()}
        some = self.stages[first:last]
        return {names.get(s.denoiser.low_size, str(s.image_size)): s for s in some}


def load_cascade(
    config: ml_collections.ConfigDict,
    mesh: Mesh | None = None,
    prompts: Sequence[str] = (),
    base: bool = True,
) -> Cascade:
    """Loads the cascade of a config: text encoder, classes and stages.

    The config must have been through `imported.as_imported`; its `stages` are as for
    `loading.load_stages`, and its `negative_prompt`, if any, is that of requests that name none.
    A T5 that does not stay embeds `prompts`, known in advance, before the stages are loaded, so
    that it never shares the device with them. Without `base` the first stage may enlarge given
    images (`Request.low`) instead of starting from noise.

    Raises:
        InputError: see `loading.load_stages`; a prompt that is not one of the cascade's classes; a
            cache of text states that lacks one, or `config.negative_prompt`; or `batch_size` is
            less than 1.
    """
    check_numbers(config, {"batch_size": BATCH})
    # 1. Text and classes: cheap, and most mistakes show here.
    encoder = make_text_encoder(config.text)
    names = class_names.resolve(config.class_names)
    check_prompts(prompts, names)
    texts = list(dict.fromkeys([*names, *prompts]))
    nulls = [text] if (text := config.get("negative_prompt", "")) else []
    for text in nulls:
        check_text("config.negative_prompt", text)
    if texts or nulls:
        encoder.embed(texts, nulls)  # raises if a cache lacks one
    # 2. The stages' weights.
    stages, variables, digests = load_stages(config, encoder, mesh, base)
    return Cascade(stages, variables, encoder, names, digests, config, config.batch_size, mesh)
