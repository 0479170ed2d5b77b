"""What the classifiers' recipes take on accelerators, and on the CPUs that feed them.

python -m tests.benchmarks.recipes                # at 40% of the peak, an assumption
python -m tests.benchmarks.recipes --share=0.3

A step's operations are counted in its program (`launch.runtime.devices.flops`): matrix products and
convolutions, forward and backward, for real images alone; nothing is compiled. The CPU time to feed
them is that of `input_pipeline.batches.rates`, on all CPUs of the hosts.
"""

import argparse
import importlib
import json
import math
import re

import jax

from classifiers import from_config
from classifiers.training.training import Training
from input_pipeline.batches.rates import cpu_seconds
from launch.runtime.devices.flops import count_flops
from launch.runtime.devices.hardware import CHIPS, fed_seconds
from launch.runtime.preflight.preflight import parse_target
from launch.runtime.reports.tables import text_table
from tests.benchmarks.harness import as_on_tpu
from tests.configs.tables import RECIPES


def recipe(name: str) -> tuple[Training, str]:
    """A config's run with batches of eight, and the target in its header."""
    module = importlib.import_module(f"configs.imagenet.{name}")
    config = module.get_config()
    training = Training.of(config, *from_config.expected_input(config))
    return training, re.search(r"--preflight=(\S+?)`", module.__doc__)[1]


def step_flops(training: Training, batch: int = 8) -> float:
    """Operations per image of a training step."""
    shape = jax.ShapeDtypeStruct
    labels = shape((batch,), "int32")
    images = shape((batch, *training.image_shape), "uint8")
    inputs = dict(image=images, label=labels, domain=labels)
    with as_on_tpu():
        return count_flops(training.update, training.abstract, inputs) / batch


def main() -> None:
    """Prints a table, and one JSON line per recipe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--share", type=float, default=0.4, help="of the peak; default %(default)s")
    share, lines, rows = parser.parse_args().share, [], []
    chip = {row.name: row for row in CHIPS}
    print(f"at {share:.0%} of the peak in bfloat16, real images alone")
    for name in sorted(RECIPES):
        training, target = recipe(name)
        plan = parse_target(target)
        chips = math.prod(plan.topology) * plan.slices
        each, config = step_flops(training), training.config
        total = each * config.batch_size * config.total_steps
        hours = total / (chips * chip[plan.generation].peak_flops * share) / 3600
        host = total / (8 * chip["H100"].peak_flops * share) / 3600
        work = cpu_seconds(config.batch_size * config.total_steps)
        fed = {
            f"{kind}, {stored}": fed_seconds(seconds, chip[kind], number) / 3600
            for kind, number in ((plan.generation, chips), ("H100", 8))
            for stored, seconds in work.items()
        }
        count = sum(leaf.size for leaf in jax.tree.leaves(training.abstract.variables["params"]))
        size = [f"{count / 1e6:.1f} M", f"{each / 1e9:.1f}", f"{config.total_steps:,}"]
        rows.append([name, *size, f"{chips} {plan.generation}", f"{hours:.1f}", f"{host:.1f}"])
        rows[-1] += [f"{hours:.2f}" for hours in fed.values()]
        case = dict(case=name, parameters=count, flops=each, hours=hours, target=target)
        lines.append(json.dumps(dict(case, hours_8_h100=host, fed_hours=fed)))
    header = [
        "recipe",
        "parameters",
        "GFLOP an image",
        "steps",
        "chips",
        "hours",
        "hours on 8 H100",
        "fed, files",
        "fed, raw copy",
        "8 H100 fed, files",
        "8 H100 fed, raw copy",
    ]
    print(text_table(header, rows))
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
