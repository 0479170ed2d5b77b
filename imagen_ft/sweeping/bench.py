"""What all points of a sweep share: labels, weights, images to enlarge, real images, features."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Int32

from classifiers.extractors.extractor import Extractor
from imagen_ft.cascade import Cascade
from imagen_ft.cascade.changes import changed
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.evaluation.drawn import Drawn, Plan
from imagen_ft.evaluation.extractors import Kind
from imagen_ft.evaluation.image_sets import ImageSet, open_set
from imagen_ft.evaluation.measures import Images, Measured, Measures
from imagen_ft.evaluation.references import References
from imagen_ft.evaluation.sampled import OneLoaded, Shrunk, class_of_each, enlarged
from imagen_ft.evaluation.seeing import conditions, see
from imagen_ft.sweeping.grid import EMA, Point
from input_pipeline import class_names
from input_pipeline.source import Source, Subset
from launch.errors import InputError
from launch.files import json_digest
from launch.runtime.devices.distributed import decide_on_first_process
from launch.runtime.locks import one_at_a_time


@dataclasses.dataclass(frozen=True)
class Bench:
    """Draws and measures points, and loads nothing twice."""

    config: ml_collections.ConfigDict
    workdir: epath.Path
    kind: Kind
    extractor: Extractor
    references: References

    @functools.cached_property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each class: config.cascade.class_names, or else the real classes."""
        names = class_names.resolve(self.config.cascade.class_names)
        real = self.references.source
        if not names and real is None:
            raise InputError(
                "config.cascade.class_names must list what to draw, got none; add class names"
            )
        return names or tuple(real.source.class_names if real else ())

    @functools.cached_property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """The class of each image, the same for all points."""
        real = self.references.source.source if self.references.source else None
        config = self.config
        # Images that are enlarged keep their own classes.
        if self._shrunk is not None:
            return self._shrunk[0].labels
        count, seed = config.num_images, config.cascade.seed
        return class_of_each(config.labels, count, len(self.prompts), real, seed)

    def portion(self, point: Point, first: int, last: int) -> ImageSet:
        """Images `first` to `last` - 1 of a point, drawn when they are needed."""
        low, digest = self._low(point, first, last)
        drawn = Drawn(
            functools.partial(self._cascade, point),
            Plan(
                self.labels[first:last],
                self.prompts,
                self.config.cascade.seed,
                low=low,
                low_digest=digest,
                first=first,
            ),
            self.workdir / "drawn",
            point.name,
        )
        # Never written to files, and rounded to uint8 by the sampler.
        return ImageSet(point.name, drawn, "none", "round", drawn)

    def see(self, images: ImageSet, measures: tuple[str, ...]) -> Images:
        """What the extractor sees in a set; every process must call it."""
        folder, size = self.workdir / "features", self.config.batch_size
        return see(images, self.extractor, self.kind, measures, folder, size)

    def measure(self, images: Images, measures: tuple[str, ...], is_final: bool) -> Measured:
        """Takes measures of a point's images, on this process alone.

        Unless `is_final`, numbers only rank points, and fewer images than features' dimensions will
        do. Raises `InputError` if a measure needs more images.
        """
        allow_few = self.config.allow_few_images or not is_final
        # `Measures` reads its choice from a config.
        changes = {"measures": measures, "allow_few_images": allow_few}
        config = ml_collections.ConfigDict({**self.config, **changes})
        common = conditions(self.extractor, images, "round", "none")
        suffix = self.kind.suffix.format(self.extractor.name)
        return Measures(config, images, self._real, common).take(suffix, lambda measure: None)

    @functools.cached_property
    def digests(self) -> dict[str, Any]:
        """Checksums of the real images and statistics, on which all numbers depend."""
        return decide_on_first_process(self.references.digests)

    def prepare(self) -> None:
        """Extracts the features of the real images; every process must call it."""
        # The first worker writes the features, the others then read them.
        with one_worker(self.workdir / "features"):
            _ = self._real

    @functools.cached_property
    def _real(self) -> Any:
        see = functools.partial(self.see, measures=tuple(self.config.measures))
        return self.references.real(see, self.digests)

    @functools.cached_property
    def _load(self) -> OneLoaded:
        return OneLoaded()

    def _cascade(self, point: Point) -> Cascade:
        # Only a point's average decides what is loaded: points with the same weights share them.
        changes = {"stages": {self.config.stage: {EMA: point.ema}}}
        loaded = self._load(self._up_to_stage(changed(self.config.cascade, changes, loading=True)))
        config = self._up_to_stage(point.config)
        # How to draw is the point's own, and costs nothing to replace.
        stages = tuple(make_stages(config, base=False).values())
        return dataclasses.replace(loaded, stages=stages, config=config)

    def _base(self, point: Point) -> Cascade:
        # Cut from the point's own cascade, so that no other weights are loaded.
        cascade = self._cascade(point)
        config = cascade.config.copy_and_resolve_references()
        with config.unlocked():
            del config.stages[self.config.stage]
        return dataclasses.replace(
            cascade,
            stages=cascade.stages[:-1],
            variables=cascade.variables[:-1],
            digests=cascade.digests[:-1],
            config=config,
        )

    def _up_to_stage(self, cascade: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        config = cascade.copy_and_resolve_references()
        # Drops the stages above the swept one; and those below, if real images take their place.
        low_size = config.stages[self.config.stage].stage.low_size
        with config.unlocked():
            for name, entry in list(config.stages.items()):
                is_base = entry.stage.low_size < low_size and self.config.low
                if entry.stage.low_size > low_size or is_base:
                    del config.stages[name]
        return config

    @functools.cached_property
    def _shrunk(self) -> tuple[Shrunk, str] | None:
        """Real images to enlarge and their checksum, if the config names some."""
        config = self.config
        if not config.low:
            return None
        images = open_set("low", "config.low", config.low, mixed=True)
        stage = config.cascade.stages[config.stage].stage
        sizes = stage.low_size, stage.size
        seed, count = config.cascade.seed, config.num_images
        return enlarged(images, *sizes, self.prompts, config.labels, count, seed)

    def _low(self, point: Point, first: int, last: int) -> tuple[Source | None, str | None]:
        if self._shrunk is not None:
            # 1. Real images.
            source, digest = self._shrunk
            return Subset(source, np.arange(first, last)), json_digest([digest, first, last])
        if not self.config.cascade.stages[self.config.stage].stage.low_size:
            # 2. The swept stage starts from noise.
            return None, None
        # 3. Images of the stages below. They do not depend on the point, so that one worker draws
        # them and the others find them on disk.
        plan = Plan(self.labels[first:last], self.prompts, self.config.cascade.seed, first=first)
        folder = self.workdir / "base"
        drawn = Drawn(functools.partial(self._base, point), plan, folder, name="base images")
        with one_worker(folder):
            drawn.draw()
        return drawn, drawn.digest()


@contextlib.contextmanager
def one_worker(folder: epath.Path) -> Iterator[None]:
    """Lets one worker at a time into the block; the others wait."""
    with contextlib.ExitStack() as stack:
        # A worker may be several processes: the first one holds the lock for all.
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(one_at_a_time(folder))
        yield
