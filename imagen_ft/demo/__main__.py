"""Runs the whole pipeline on scikit-learn's handwritten digits, as `sh launch/demo.sh` does.

python -m imagen_ft.demo
python -m imagen_ft.demo --runlocal --workdir=runs/try
python -m imagen_ft.demo --imagenet=standin

It pretrains a small text-to-image cascade, fine-tunes it on 30 labelled digits, generates 900,
trains classifiers on real and synthetic digits, and reports what the synthetic ones were worth. Run
it again to resume; it skips what is complete.
With --imagenet=standin it runs ImageNet's pipeline instead, with tiny networks for a CPU: base,
super-resolution, one image per class, and a study with classifiers on drawn shapes; with
--imagenet=PATH on the images of that folder or zip (train/n01440764/*.JPEG and val/...).
"""

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from imagen_ft.demo.imagenet import STAND_IN, imagenet_jobs
from imagen_ft.demo.road import LANES, digits_jobs, make_runner
from launch.cli import exit_code, parse_flags, say
from launch.errors import InputError
from launch.jobs.runner import JobRunner

_DIGITS, _IMAGENET = "runs/digits", "runs/imagenet_glance"


def define_flags(values: flags.FlagValues) -> None:
    """Adds the flags of this command."""
    flags.DEFINE_string("workdir", _DIGITS, "folder of all runs and the report", flag_values=values)
    flags.DEFINE_string(
        "imagenet",
        "",
        "run a tiny ImageNet pipeline instead, in runs/imagenet_glance: 'standin', or the path of "
        "ImageNet",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "runlocal",
        False,
        "only a few steps of everything, to check that it runs",
        flag_values=values,
    )


def main(argv: Sequence[str]) -> None:
    """Runs the pipeline and writes the report; raises `InputError` on wrong flags."""
    values = parse_flags(argv, __doc__ or "", define_flags, required=("workdir",))
    if values is None:
        return
    if values.imagenet:
        _run_imagenet(values.workdir, values.imagenet)
    else:
        _run(Path(os.path.relpath(values.workdir)), values.runlocal)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns an exit code of `launch.cli`."""
    argv = list(sys.argv if argv is None else argv)
    return exit_code(lambda: main(argv), "run the same command again to resume")


def _run(root: Path, runlocal: bool) -> None:
    # 1. Run the steps, each a process of its own.
    runner = make_runner(root, digits_jobs(root, runlocal))
    runner.run()
    runner.tick()
    # 2. Report. Imported only now: it imports JAX, which takes 300 MB while the steps need memory.
    from imagen_ft.demo import report

    result = report.write(root, runner.wall_seconds(), _peak_memory(runner))
    print(report.table(result))
    print(f"\n{report.verdict(result)[0]}")
    say(f"report: {root / 'report.html'}", sys.stdout)


def _run_imagenet(workdir: str, data: str) -> None:
    root = Path(os.path.relpath(_IMAGENET if workdir == _DIGITS else workdir))
    if data != STAND_IN and not os.path.exists(data):
        raise InputError(
            f"--imagenet={data}: no such file; give a folder or zip of ImageNet, or {STAND_IN}"
        )
    runner = make_runner(root, imagenet_jobs(root, data))
    runner.run()
    runner.tick()
    say(f"report: {root / 'study' / 'report.html'}", sys.stdout)
    say(f"synthetic images: {root / 'synthetic' / 'README.md'}", sys.stdout)


def _peak_memory(runner: JobRunner) -> int:
    # An upper bound in bytes: ours plus the largest steps', as if those had run together.
    peaks = sorted(mark["peak_memory_bytes"] for mark in runner.marks().values())
    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports ru_maxrss in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + sum(peaks[-LANES:])


if __name__ == "__main__":
    sys.exit(run())
