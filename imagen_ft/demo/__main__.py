"""The whole road on the digits embedded in scikit-learn: `sh launch/demo.sh`.

Pretrains a small text-to-image cascade, fine-tunes it on 30 labelled digits, generates 900, trains
classifiers on real and generated digits and says what the generated ones were worth. Run it again:
what is complete is not done again, what was interrupted goes on where it stopped.
"""

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from configs.digits.common import ENVIRONMENT
from launch.cli import exit_code, parse_flags, say
from launch.jobs.runner import Job, JobRunner

ARMS = {
    "real": "arm=real",
    "pool": "arm=pool",
    "generated": "arm=generated,k=30",
    "real+generated_1x": "arm=real+generated,k=1",
    "real+generated_10x": "arm=real+generated,k=10",
    "real+generated_30x": "arm=real+generated,k=30",
}
LANES = 2


def digits_jobs(root: Path, runlocal: bool) -> list[Job]:
    """The command lines of the road, below `root`."""

    def job(name, module, config, workdir, after, seconds, overrides=(), output=None) -> Job:
        file, _, arguments = config.partition(":")
        arguments = ",".join(filter(None, (arguments, "runlocal" if runlocal else "")))
        path = Path("configs/digits") / f"{file}.py"
        config = f"--config={path}" + (f":{arguments}" if arguments else "")
        command = (module, config, f"--workdir={workdir}", *overrides)
        inputs = (path, Path("configs/digits/common.py"), Path("configs/arguments.py"))
        return Job(name, command, inputs, output or workdir, after, seconds)

    def finetune(name: str, start: str = "") -> Job:
        after, seconds = ((start,), 25) if start else ((), 90)
        init = (f"--config.init_from={root / start}",) if start else ()
        return job(name, "imagen_ft.finetune", name, root / name, after, seconds, init)

    def classify(arm: str, arguments: str) -> Job:
        after = ("generate",) if "generated" in arm else ()
        path = (f"--config.train_sources.generated.path={generated}",) if after else ()
        config, workdir = f"classifier:{arguments}", root / "classifiers" / arm
        return job(arm, "classifiers.train", config, workdir, after, 45, path)

    tuned = {"base4": root / "finetune_base4", "sr8": root / "finetune_sr8"}
    stages = [f"--config.stages.{stage}.run={run}" for stage, run in tuned.items()]
    after = tuple(run.name for run in tuned.values())
    generated, samples, folder = root / "generated", root / "samples", root / "classifiers"
    return [
        finetune("pretrain_base4"),
        finetune("pretrain_sr8"),
        finetune("finetune_base4", "pretrain_base4"),
        finetune("finetune_sr8", "pretrain_sr8"),
        job(
            "generate", "imagen_ft.generate", "generate", generated, after, 45, stages,
            generated / "manifest.json",
        ),
        job(
            "samples", "imagen_ft.sample", "sample", samples, after, 20, stages,
            samples / "samples.png",
        ),
        *(classify(arm, arguments) for arm, arguments in ARMS.items()),
        job(
            "evaluate", "classifiers.evaluate", "evaluate", folder, tuple(ARMS), 15, (),
            folder / "evaluation_test.json",
        ),
    ]  # fmt: skip


def define_flags(values: flags.FlagValues) -> None:
    """Adds the flags of this command."""
    flags.DEFINE_string(
        "workdir", "runs/digits", "folder of all runs and the report", flag_values=values
    )
    flags.DEFINE_bool(
        "runlocal", False, "a few steps of all, to see that it runs", flag_values=values
    )


def main(argv: Sequence[str]) -> None:
    """Runs the road and writes the report.

    Raises:
        InputError: wrong flags.
    """
    values = parse_flags(argv, __doc__ or "", define_flags, required=("workdir",))
    if values is not None:
        _run(Path(os.path.relpath(values.workdir)), values.runlocal)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code, by the conventions of `launch.cli`."""
    argv = list(sys.argv if argv is None else argv)
    return exit_code(lambda: main(argv), "the same command goes on where it stopped")


def _run(root: Path, runlocal: bool) -> None:
    # Its steps are no tasks of a cluster's job, whatever the variables around it say.
    options = ("--coordinator=none",)
    runner = JobRunner(root, digits_jobs(root, runlocal), LANES, ENVIRONMENT, options=options)
    runner.run()
    runner.tick()
    # JAX comes with it, and would take 300 MB beside the steps.
    from imagen_ft.demo import report

    result = report.write(root, runner.wall_seconds(), _peak_memory(runner))
    print(report.table(result))
    print(f"\n{report.verdict(result)[0]}")
    say(f"report: {root / 'report.html'}", sys.stdout)


def _peak_memory(runner: JobRunner) -> int:
    """An upper bound, in bytes: ours and the largest steps', as if those had run together."""
    peaks = sorted(mark["peak_memory_bytes"] for mark in runner.marks().values())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + sum(peaks[-LANES:])


if __name__ == "__main__":
    sys.exit(run())
