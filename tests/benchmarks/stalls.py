"""What a run of imagen_ft.finetune loses to waiting for data and to saving checkpoints.

python -m tests.benchmarks.stalls --config=configs/imagenet/if_i_l.py:data=DIR --batch=64
python -m tests.benchmarks.stalls --config=configs/cifar10/finetune_base16.py:runlocal    # a glance

The real program trains on the real images of the config, from scratch and on one device; prompts
that the config reads from a cache get random text states. A save costs the time for which the loop
stops, and the slowdown of the steps beside its background work relative to those before the first
save. --every is short so that several saves happen; the last line gives the share at the config's
own interval.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from imagen_ft.text.cache import TextCache
from imagen_ft.text.captions import PLAIN, prompt_keys
from input_pipeline import class_names

LOG_EVERY = 10


def load(argument: str) -> ConfigDict:
    """The config named on the command line."""
    path, _, arg = argument.partition(":")
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def random_cache(folder: Path, config: ConfigDict) -> list[str]:
    """Writes the cache that the config needs; returns the flags that name it."""
    if "cache" not in config.text:
        return []
    folder.mkdir()
    names = class_names.resolve(config.class_names)
    prompts = ["", *dict.fromkeys(prompt_keys(names, "{}", PLAIN))]
    shape = tuple(config.text.shape)
    cache = TextCache.create(folder, {"dtype": "bfloat16", "random": 0}, shape, ())
    rng = np.random.default_rng(0)
    for first in range(0, len(prompts), 100):
        part = prompts[first : first + 100]
        cache.append(part, rng.standard_normal((len(part), *shape), np.float32))
    return [f"--config.text.cache={folder}"]


def train(args: argparse.Namespace, config: ConfigDict, folder: Path) -> list[dict]:
    """Runs the program; returns its log."""
    workdir = folder / "run"
    fields = dict(
        total_steps=args.steps,
        log_every=LOG_EVERY,
        checkpoint_every=args.every,
        evaluate_every=0,
        pictures_every=0,
        init_from="",
        batch_size=args.batch or config.batch_size,
        evaluation_batch_size=args.batch or config.evaluation_batch_size,
        accumulation=1,
    )
    fields["mesh.data"] = fields["mesh.fsdp"] = fields["mesh.tensor"] = 1
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "imagen_ft.finetune", f"--config={args.config}"]
    command += [f"--workdir={workdir}", *overrides, *random_cache(folder / "text", config)]
    if subprocess.run(command).returncode:
        sys.exit("the run failed")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    """Trains; prints the table and a JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="FILE:ARGUMENTS of imagen_ft.finetune")
    parser.add_argument("--batch", type=int, help="images a step")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=100, help="steps between two saves")
    args = parser.parse_args()
    config = load(args.config)
    with tempfile.TemporaryDirectory() as folder:
        log = train(args, config, Path(folder))
    timed = [line for line in log if "step_seconds" in line]
    before = [line for line in timed if line["step"] <= args.every]
    after = [line for line in timed if line["step"] > args.every]
    step = statistics.median(line["step_seconds"] for line in before)
    # No step runs beside the last save.
    saves = [line["checkpoint_seconds"] for line in log if "checkpoint_seconds" in line]
    slower = sum(LOG_EVERY * (line["step_seconds"] - step) for line in after)
    saved = statistics.median(saves[:-1]) + max(0.0, slower / len(saves[:-1]))
    found = dict(
        step_seconds=step,
        images_per_second=before[-1]["images_per_second"],
        share_of_peak=statistics.median(line.get("share_of_peak", 0.0) for line in before),
        data_wait=statistics.median(line["data_wait"] for line in timed),
        save_stands_still_seconds=statistics.median(saves[:-1]),
        save_costs_seconds=saved,
        checkpoint_stall=saved / (saved + config.checkpoint_every * step),
    )
    for name, value in found.items():
        print(f"{name:28} {value:12.5g}")
    print(f"checkpoint_stall is at the config's {config.checkpoint_every} steps a save")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
