"""The rounds of a sweep: free workers draw and measure each point's images.

The result of a point is one file, whole or absent; everything else may be lost at any time. A
worker takes its own share of the points first, then those that nobody is working on, so nobody
waits for a worker that has died.
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

# Version of the kept results: raise it when numbers change their meaning.
_FORMAT = 1
# Seconds between looks at the other workers' results.
LOOK_EVERY = 5.0
SAMPLES = "samples.png"
# Columns of the picture with samples.
_COLUMNS = 10
# What results depend on besides images.
_SETTINGS = ("allow_few_images", *WITH_ARGUMENTS, "num_worst")
# Ranges of images that a point is drawn in, one a round: (first, last + 1).
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
        """`worker` is the index of this one among `num_workers` that share the work directory."""
        self._bench, self._points, self._rounds = bench, list(points), list(rounds)
        self._worker, self._num_workers = worker, num_workers
        config = bench.config
        self._measures: tuple[str, ...] = tuple(config.measures)
        self._halving: str = config.halving.measure
        self._digests: dict[tuple[str, tuple[int, int]], str] = {}
        self._settings = {name: plain(config[name]) for name in _SETTINGS if name in config}

    def run(self) -> list[Row]:
        """Runs what is missing, and returns each point's row of its last round."""
        # 1. The real images, once.
        self._bench.prepare()
        rows: dict[str, Row] = {}
        points, ends = self._points, [0]
        for entry in self._rounds:
            # 2. The round: the best points so far, up to its number of images.
            points, ends = points[: entry.points], [*ends, entry.images]
            portions = list(itertools.pairwise(ends))
            is_last = entry is self._rounds[-1]
            self._run_round(points, portions, is_last)
            for point in points:
                row = self._read(point, portions, is_last)
                assert row is not None
                rows[point.name] = row
            # 3. Rank them for the next round. A point keeps its images and only draws more.
            order = best_first([rows[point.name] for point in points], self._halving)
            points = [next(p for p in points if p.name == row.name) for row in order]
        # 4. All results are there: images may go.
        on_first_process(self._clean)
        return [rows[point.name] for point in self._points]

    def _run_round(self, points: Sequence[Point], portions: Portions, is_last: bool) -> None:
        # Own points first, so that workers rarely meet.
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
                # 1. What is missing, by the files that are there now.
                missing = [p for p in (*own, *others) if not self._read(p, portions, is_last)]
                bar.update(len(points) - len(missing) - bar.n)
                if not missing:
                    return
                # 2. Work on every free point; look again first, as another worker may just have
                # finished it.
                worked = False
                for point in missing:
                    with self._claimed(point) as is_mine:
                        if is_mine and not self._read(point, portions, is_last):
                            self._work(point, portions, is_last)
                            bar.update()
                            worked = True
                # 3. All that is missing is being worked on: wait.
                if not worked:
                    if not waits:
                        say("waiting for points that other workers are computing", sys.stdout)
                    waits = True
                    time.sleep(LOOK_EVERY)

    @contextlib.contextmanager
    def _claimed(self, point: Point) -> Iterator[bool]:
        """Whether this worker may work on a point; if so, no other can within the block."""
        folder = self._folder(point)
        # The lock ends with the process, so a dead worker holds no point.
        with contextlib.ExitStack() as stack:

            def claim() -> bool:
                folder.mkdir(parents=True, exist_ok=True)
                return stack.enter_context(tried(folder))

            yield decide_on_first_process(claim)

    def _work(self, point: Point, portions: Portions, is_last: bool) -> None:
        try:
            sets = [self._bench.portion(point, *portion) for portion in portions]
            content = self._measured(point, sets, is_last)
        except Diverged as error:
            # A setting whose images are not finite is a result, and the sweep continues.
            say(f"{point.name}: {error}")
            content = None
        origin = self._made_from(point, portions, is_last)
        path = self._path(point, portions)
        on_first_process(lambda: write_sealed(path, {"made_from": origin, "measured": content}))

    def _measured(self, point: Point, sets: list[ImageSet], is_last: bool) -> dict[str, Any]:
        # 1. Features, portion by portion; those of earlier rounds are cached.
        looked_at = [self._bench.see(images, self._measures) for images in sets]
        # 2. A picture, while the images are on disk.
        picture = self._folder(point) / SAMPLES
        if not decide_on_first_process(picture.exists):
            self._show(sets[0], picture)
        if self._bench.config.cas:
            # 3. A classifier must see the images that are measured; without one, drop them now.
            if is_last:
                trained.write_set(self._bench, sets, self._folder(point) / trained.SET)
        else:
            _drop(sets)
        # 4. The measures; earlier rounds take only the one that ranks points.
        measures = self._of_round(is_last)

        def take() -> dict[str, Any]:
            try:
                return self._bench.measure(_joined(looked_at), measures, is_last).to_json()
            except InputError as error:
                raise InputError(f"{point.name}: {error}") from None

        return decide_on_first_process(take)

    def _show(self, images: ImageSet, path: epath.Path) -> None:
        # The first images: the same classes and noise at all points.
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
        """The result of a point, if it is there, whole and made with these settings."""
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
        for portion in portions:
            if (point.name, portion) not in self._digests:
                # Cached, as it may load a point's weights in place of others.
                self._digests[point.name, portion] = self._bench.portion(point, *portion).digest()
        # All that the result depends on; any other content makes the file stale.
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
        if (self._bench.workdir / "drawn").exists():
            (self._bench.workdir / "drawn").rmtree(missing_ok=True)


def _drop(sets: Sequence[ImageSet]) -> None:
    for images in sets:
        assert images.drawn is not None
        images.drawn.drop(())


def _joined(parts: Sequence[Images]) -> Images:
    """The features of all portions as one set."""

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
