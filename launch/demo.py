"""The whole road on the digits embedded in scikit-learn: `sh launch/demo.sh`.

Pretrains a small text-to-image cascade, fine-tunes it on 30 labelled digits, generates 900, trains
classifiers on real and generated digits and says what the generated ones were worth. Run it again:
what is complete is not done again, what was interrupted goes on where it stopped.
"""

import argparse
import resource
import sys
from pathlib import Path

from input_pipeline.files import InputError
from launch.road import Road, Step, StepFailed

ARMS = {
    "real": "arm=real",
    "pool": "arm=pool",
    "generated": "arm=generated,k=30",
    "real+generated_1x": "arm=real+generated,k=1",
    "real+generated_10x": "arm=real+generated,k=10",
    "real+generated_30x": "arm=real+generated,k=30",
}
# Two programs of one thread each: small networks gain little from more threads, and the number of
# threads decides how sums are rounded. The results do not depend on how many cores a machine has.
# Programs this small take longer to compile than to run, so they are compiled with less effort.
LANES = 2
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=1",
}


def digits_steps(root: Path, runlocal: bool) -> list[Step]:
    """The command lines of the road, below `root`."""

    def config(name: str, *arguments: str) -> str:
        arguments = (*arguments, "runlocal") if runlocal else arguments
        return f"--config=configs/digits/{name}.py" + (
            f":{','.join(arguments)}" if arguments else ""
        )

    def train(name: str, after: tuple[str, ...], seconds: float, *overrides: str) -> Step:
        command = ("imagen_ft.finetune", config(name), f"--workdir={root / name}", *overrides)
        return Step(name, command, root / name, after, seconds)

    steps = [
        train("pretrain_base4", (), 80),
        train("pretrain_sr8", (), 80),
        train("finetune_base4", ("pretrain_base4",), 15, _start(root, "pretrain_base4")),
        train("finetune_sr8", ("pretrain_sr8",), 15, _start(root, "pretrain_sr8")),
    ]
    stages = [
        f"--config.stages.{stage}.run={root / f'finetune_{stage}'}" for stage in ("base4", "sr8")
    ]
    generated = root / "generated"
    command = ("imagen_ft.generate", config("generate"), f"--workdir={generated}", *stages)
    after = ("finetune_base4", "finetune_sr8")
    steps.append(Step("generate", command, generated / "manifest.json", after, 40))
    command = ("imagen_ft.sample", config("sample"), f"--workdir={root / 'samples'}", *stages)
    steps.append(Step("samples", command, root / "samples" / "samples.png", after, 15))
    for arm, argument in ARMS.items():
        workdir = root / "classifiers" / arm
        command = ("classifiers.train", config("classifier", argument), f"--workdir={workdir}")
        needs = "generated" in arm
        if needs:
            command += (f"--config.train_sources.generated.path={generated}",)
        steps.append(Step(arm, command, workdir, ("generate",) if needs else (), 25))
    folder = root / "classifiers"
    command = ("classifiers.evaluate", config("evaluate"), f"--workdir={folder}")
    steps.append(Step("evaluate", command, folder / "evaluation_test.json", tuple(ARMS), 15))
    return steps


def main(argv: list[str] | None = None) -> int:
    """Runs the road and writes the report; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, prog="sh launch/demo.sh")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/digits"), help="default: %(default)s"
    )
    parser.add_argument(
        "--runlocal", action="store_true", help="a few steps of everything, to see that it runs"
    )
    args = parser.parse_args(argv)
    root = args.workdir
    try:
        road = Road(root, digits_steps(root, args.runlocal), LANES, _ENVIRONMENT)
        road.run()
        # JAX comes with it, and would take 300 MB beside the steps.
        from launch import digits_report

        result = digits_report.write(root, road.wall_seconds(), _peak_memory(road))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StepFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130
    print(digits_report.table(result))
    print(f"\n{digits_report.verdict(result)[0]}\nreport: {root / 'report.html'}")
    return 0


def _peak_memory(road: Road) -> int:
    """An upper bound, in bytes: ours and the largest steps', as if those had run together."""
    peaks = sorted(mark["peak_memory_bytes"] for mark in road.marks().values())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + sum(peaks[-LANES:])


def _start(root: Path, run: str) -> str:
    return f"--config.init_from={root / run}"


if __name__ == "__main__":
    sys.exit(main())
