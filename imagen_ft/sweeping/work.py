"""The rounds of a sweep: each point's images are drawn and measured by the workers that are free.

A point's result is one file, whole or absent; all else that is on its way can be lost. A worker
takes the points that fall to it first, then those that nobody is at: so none waits for one that has
died.
"""

import contextlib
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from imagen_ft.evaluation.image_sets import ImageSet
from imagen_ft.evaluation.measures import WITH_ARGUMENTS, Images, Measured
from imagen_ft.evaluation.mosaic import mosaic
from imagen_ft.metrics.frechet import Labelled
from imagen_ft.sweeping import trained
from imagen_ft.sweeping.bench import Bench
from imagen_ft.sweeping.grid import Point
from imagen_ft.sweeping.rounds import Round
from imagen_ft.sweeping.rows import Row, best_first, point_folder
from input_pipeline.records.image_codec import encode_png
from launch.cli import say
from launch.errors import Diverged, InputError
from launch.files import json_digest, read_sealed, write_atomic, write_sealed
from launch.runtime.config import plain
from launch.runtime.devices.distributed import decide_on_first_process, on_first_process
from launch.runtime.locks import tried

# Of what is kept: to be raised when numbers change their meaning.
_FORMAT = 1
# Seconds between two looks at what other workers are at.
LOOK_EVERY = 5.0
SAMPLES = "samples.png"
_COLUMNS = 10
# What results depend on besides images.
_SETTINGS = ("allow_few_images", *WITH_ARGUMENTS, "num_worst")
# First and last image of each portion that a point is drawn in.
Portions = Sequence[tuple[int, int]]


class Sweep:
    """Runs the rounds; all processes of a job are one worker, and make the same calls."""

    def __init__(
        self,
        bench: Bench,
        points: Sequence[Point],
        rounds: Sequence[Round],
        worker: int = 0,
        num_workers: int = 1,
    ):
        """Gets ready.

        Args:
            bench: draws and measures.
            points: of the grid.
            rounds: see `plan_rounds`.
            worker: which of the workers this one is.
            num_workers: how many share the work directory.
        """
        self._bench, self._points, self._rounds = bench, list(points), list(rounds)
        self._worker, self._num_workers = worker, num_workers
        config = bench.config
        self._measures: tuple[str, ...] = tuple(config.measures)
        self._halving: str = config.halving.measure
        self._digests: dict[tuple[str, tuple[int, int]], str] = {}
        self._settings = {name: plain(config[name]) for name in _SETTINGS if name in config}

    def run(self) -> list[Row]:
        """Runs what is missing; a row of each point, as it was measured last."""
        self._bench.prepare()
        rows: dict[str, Row] = {}
        points, ends = self._points, [0]
        for entry in self._rounds:
            points, ends = points[: entry.points], [*ends, entry.images]
            portions = list(itertools.pairwise(ends))
            is_last = entry is self._rounds[-1]
            self._run_round(points, portions, is_last)
            for point in points:
                row = self._read(point, portions, is_last)
                assert row is not None
                rows[point.name] = row
            order = best_first([rows[point.name] for point in points], self._halving)
            points = [next(p for p in points if p.name == row.name) for row in order]
        on_first_process(self._clean)
        return [rows[point.name] for point in self._points]

    def _run_round(self, points: Sequence[Point], portions: Portions, is_last: bool) -> None:
        own = list(points[self._worker :: self._num_workers])
        others = [point for point in points if point not in own]
        waits = False
        with tqdm(
            total=len(points),
            desc=f"sweep, {portions[-1][1]:,} images each",
            unit="point",
            disable=jax.process_index() > 0,
        ) as bar:
            while True:
                missing = [p for p in (*own, *others) if not self._read(p, portions, is_last)]
                bar.update(len(points) - len(missing) - bar.n)
                if not missing:
                    return
                worked = False
                for point in missing:
                    with self._claimed(point) as is_mine:
                        if is_mine and not self._read(point, portions, is_last):
                            self._work(point, portions, is_last)
                            bar.update()
                            worked = True
                if not worked:
                    if not waits:
                        say("waiting for points that other workers are at", sys.stdout)
                    waits = True
                    time.sleep(LOOK_EVERY)

    @contextlib.contextmanager
    def _claimed(self, point: Point) -> Iterator[bool]:
        """Whether no other worker is at a point, nor comes to it within the block."""
        folder = self._folder(point)
        with contextlib.ExitStack() as stack:

            def claim() -> bool:
                folder.mkdir(parents=True, exist_ok=True)
                return stack.enter_context(tried(folder))

            yield decide_on_first_process(claim)

    def _work(self, point: Point, portions: Portions, is_last: bool) -> None:
        """Draws and measures a point, and writes what was found."""
        try:
            sets = [self._bench.portion(point, *portion) for portion in portions]
            content = self._measured(point, sets, is_last)
        except Diverged as error:
            say(f"{point.name}: {error}")
            content = None
        origin = self._made_from(point, portions, is_last)
        path = self._path(point, portions)
        on_first_process(lambda: write_sealed(path, {"made_from": origin, "measured": content}))

    def _measured(self, point: Point, sets: list[ImageSet], is_last: bool) -> dict[str, Any]:
        looked_at = [self._bench.see(images, self._measures) for images in sets]
        picture = self._folder(point) / SAMPLES
        if not decide_on_first_process(picture.exists):
            self._show(sets[0], picture)
        if self._bench.config.cas:
            # Its classifier is to see those images that are measured.
            if is_last:
                trained.write_set(self._bench, sets, self._folder(point) / trained.SET)
        else:
            _drop(sets)
        measures = self._of_round(is_last)

        def take() -> dict[str, Any]:
            try:
                return self._bench.measure(_joined(looked_at), measures, is_last).to_json()
            except InputError as error:
                raise InputError(f"{point.name}: {error}") from None

        return decide_on_first_process(take)

    def _show(self, images: ImageSet, path: epath.Path) -> None:
        """Writes a picture of the first images: those of all points have the same noise."""
        count = min(self._bench.config.num_shown, len(images.source))
        assert images.drawn is not None
        images.drawn.draw(range(count))

        def write() -> None:
            tiles = [images.source[i]["image"] for i in range(count)]
            write_atomic(path, encode_png(mosaic(tiles, min(_COLUMNS, count))))

        on_first_process(write)

    def _of_round(self, is_last: bool) -> tuple[str, ...]:
        return self._measures if is_last else (self._halving,)

    def _read(self, point: Point, portions: Portions, is_last: bool) -> Row | None:
        """The result of a point, if it is there, whole and of this origin."""
        origin = self._made_from(point, portions, is_last)

        def read() -> dict[str, Any] | None:
            try:
                content = read_sealed(self._path(point, portions))
            except InputError:
                return None
            return content if content.get("made_from") == origin else None

        content = decide_on_first_process(read)
        if content is None:
            return None
        measured = content["measured"]
        return Row(
            name=point.name,
            values=point.values,
            evaluations=point.evaluations,
            images=portions[-1][1],
            is_final=is_last,
            measured=None if measured is None else Measured.from_json(measured),
        )

    def _made_from(self, point: Point, portions: Portions, is_last: bool) -> dict[str, Any]:
        """What a result depends on, for JSON."""
        for portion in portions:
            if (point.name, portion) not in self._digests:
                # The weights that it takes may not be those that are held.
                self._digests[point.name, portion] = self._bench.portion(point, *portion).digest()
        labels = self._bench.labels[: portions[-1][1]].tolist()
        return {
            "format": _FORMAT,
            "extractor": self._bench.extractor.made_from,
            "images": [self._digests[point.name, portion] for portion in portions],
            "labels": json_digest([list(self._bench.prompts), labels]),
            "reference": self._bench.digests,
            "measures": list(self._of_round(is_last)),
            "settings": self._settings,
        }

    def _folder(self, point: Point) -> epath.Path:
        return point_folder(self._bench.workdir, point.name)

    def _path(self, point: Point, portions: Portions) -> epath.Path:
        return self._folder(point) / f"{portions[-1][1]}.json"

    def _clean(self) -> None:
        """Takes away the images of points that have all been measured."""
        if (self._bench.workdir / "drawn").exists():
            (self._bench.workdir / "drawn").rmtree(missing_ok=True)


def _drop(sets: Sequence[ImageSet]) -> None:
    for images in sets:
        assert images.drawn is not None
        images.drawn.drop(())


def _joined(parts: Sequence[Images]) -> Images:
    """Features of all portions as those of one set."""

    def joined(arrays: list[np.ndarray | None]) -> np.ndarray | None:
        there = [array for array in arrays if array is not None]
        return np.concatenate(there) if there else None

    pooled = Labelled(
        np.concatenate([part.pooled.features for part in parts]),
        np.concatenate([part.pooled.labels for part in parts]),
    )
    spatial, logits = (
        joined([getattr(part, name) for part in parts]) for name in ("spatial", "logits")
    )
    return Images(pooled, spatial, logits, parts[0].num_classes)
