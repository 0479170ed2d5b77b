"""How far things travel through the code: rooms, import chains, files entered on the way.

python -m tests.benchmarks.structure

Prints lines of Python by room and the longest chain of imports. Then, while a cascade of two stages
is loaded from run directories, and while images come from a folder on the disk into a training
step: which files of the project are entered (one of their functions is called), by how many calls,
and how often each file on the disk is opened. No time is measured, and there is no peer.
"""

import collections
import dataclasses
import functools
import json
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import grimp
import jax
import numpy as np

from configs.digits import pretrain_base4, sample
from imagen_ft import finetune
from imagen_ft.cascade import load_cascade
from imagen_ft.training import warm_start
from imagen_ft.training.images import make_reader, open_images
from imagen_ft.training.training import Training
from launch.runtime.devices.mesh import make_mesh, put_batch
from tests.support import ROOT, commands

ROOMS = ("imagen_ft", "classifiers", "input_pipeline", "launch", "configs", "tests")


def lines_by_room() -> dict[str, int]:
    """Lines of Python files."""
    return {
        room: sum(len(path.read_bytes().splitlines()) for path in (ROOT / room).rglob("*.py"))
        for room in ROOMS
    }


def longest_chain() -> list[str]:
    """The longest list of modules in which each imports the next."""
    graph = grimp.build_graph(*ROOMS[:-1])

    @functools.cache
    def chain_from(module: str) -> tuple[str, ...]:
        below = map(chain_from, sorted(graph.find_modules_directly_imported_by(module)))
        return (module, *max(below, key=len, default=()))

    return list(max(map(chain_from, sorted(graph.modules)), key=len))


@dataclasses.dataclass
class Journey:
    """What an action has passed through.

    Attributes:
        entered: files of the rooms, in the order of the first call, and the number of calls.
        opened: files in a folder on the disk, and how often each was opened.
    """

    entered: collections.Counter
    opened: collections.Counter


def follow(action: Callable[[], object], folder: Path) -> Journey:
    """Runs an action; records what all its threads call and open."""
    journey = Journey(collections.Counter(), collections.Counter())
    prefixes = tuple(f"{ROOT / room}/" for room in ROOMS[:-1])

    def note(frame, event, _argument):
        code = frame.f_code
        if event == "call" and code.co_name != "<module>" and code.co_filename.startswith(prefixes):
            journey.entered[str(Path(code.co_filename).relative_to(ROOT))] += 1

    def hear(event, arguments):
        if event == "open" and listening and str(arguments[0]).startswith(f"{folder}/"):
            journey.opened[Path(arguments[0]).name] += 1

    listening = [True]
    sys.addaudithook(hear)  # It cannot be removed again.
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        listening.clear()
    return journey


def loading_a_cascade(folder: Path) -> Journey:
    """`load_cascade` for a base and a super-resolution stage."""
    config = sample.get_config()
    for name, entry in config.stages.items():
        start = ["--config.init_from=", "--config.total_steps=1"]
        stage = "pretrain_base4" if not entry.stage.low_size else "pretrain_sr8"
        entry.run = str(folder / name)
        if commands.run(finetune.main, f"configs/digits/{stage}.py", entry.run, *start):
            raise RuntimeError(f"{stage} was not trained")
    return follow(lambda: load_cascade(config), folder)


def images_to_a_step(folder: Path) -> Journey:
    """From opening a folder of images to a training step with a batch of two."""
    for name in ("ant", "bee"):
        (folder / name).mkdir()
        image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
        (folder / name / "0.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    config = pretrain_base4.get_config()
    config.stage.channels, config.batch_size = 3, 2
    config.train_source = config.evaluation_source = dict(name="image_folder", path=str(folder))
    config.class_names = ("ant", "bee")
    training, mesh = Training.of(config), make_mesh(config.mesh)
    text = np.zeros((2, *training.text_shape), np.float32)
    step = training.step(mesh, text, text[0])

    def action():
        source = open_images(training).train
        step(state, put_batch(mesh, next(iter(make_reader(training, source, mesh)(0, 1)))))

    with jax.set_mesh(mesh):
        state = warm_start.create(training, mesh)
        return follow(action, folder)


def main() -> None:
    """Prints everything, with JSON in the last lines."""
    lines, chain = lines_by_room(), longest_chain()
    print("\n".join(f"{room:16}{count:8,} lines" for room, count in lines.items()))
    print(f"\nlongest chain of imports, {len(chain)} modules:\n  " + "\n  ".join(chain))
    results = [dict(case="lines", **lines), dict(case="longest import chain", modules=len(chain))]
    for name, measure in (
        ("load_cascade", loading_a_cascade),
        ("images to a step", images_to_a_step),
    ):
        with tempfile.TemporaryDirectory() as folder:
            journey = measure(Path(folder))
        entered, calls = journey.entered, journey.entered.total()
        print(f"\n{name} enters {len(entered)} files by {calls} calls:")
        print("\n".join(f"  {path:52}{count:6} calls" for path, count in entered.items()))
        several = {name: count for name, count in journey.opened.items() if count > 1}
        print(f"files opened: {journey.opened.total()}; more than once: {several or 'none'}")
        opened = journey.opened.total()
        results.append(dict(case=name, files=len(entered), calls=calls, opened=opened))
    print()
    for result in results:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
