"""The demo's pipeline as jobs: each step is a command line that waits for those it needs."""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from configs.digits.common import ENVIRONMENT
from launch.jobs.runner import Job, JobRunner

# Arms of the comparison, with the arguments of their config; k: synthetic copies of the 30 digits.
ARMS = {
    "real": "arm=real",
    "pool": "arm=pool",
    "synthetic": "arm=synthetic,k=30",
    "pretrained": "arm=synthetic,k=30",
    "real+synthetic_1x": "arm=real+synthetic,k=1",
    "real+synthetic_10x": "arm=real+synthetic,k=10",
    "real+synthetic_30x": "arm=real+synthetic,k=30",
}
# Arms whose digits another cascade than the fine-tuned one draws: (the step, its folder).
SETS = {"pretrained": ("generate_pretrained", "pretrained")}
LANES = 2  # steps that run at the same time


def digits_jobs(
    root: Path, runlocal: bool, arms: Collection[str] = tuple(ARMS), seeds: int = 0
) -> list[Job]:
    """The jobs of the pipeline, with all runs below `root`.

    `runlocal` runs a few steps of everything. `arms` are the keys of `ARMS` to train and compare,
    `seeds` the number of classifiers an arm; 0: as many as the config has.
    """
    road = _Road(root, runlocal, seeds)
    manifest, folder = "manifest.json", root / "classifiers"
    return [
        road.finetune("pretrain_base4"),
        road.finetune("pretrain_sr8"),
        road.finetune("finetune_base4", "pretrain_base4"),
        road.finetune("finetune_sr8", "pretrain_sr8"),
        road.draw("generate", "generate", root / "synthetic", "finetune", manifest),
        *(
            road.draw(step, "generate", root / images, "pretrain", manifest)
            for arm, (step, images) in SETS.items()
            if arm in arms
        ),
        road.draw("samples", "sample", root / "samples", "finetune", "samples.png"),
        *(road.classify(arm) for arm in arms),
        road.job(
            "evaluate", "classifiers.evaluate", "evaluate", folder, tuple(arms), 15,
            output=folder / "evaluation_test.json",
        ),
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Road:
    # Makes the jobs of `digits_jobs`, which explains the fields.
    root: Path
    runlocal: bool
    seeds: int

    def job(
        self,
        name: str,
        module: str,
        config: str,
        workdir: Path,
        after: tuple[str, ...],
        seconds: float,
        overrides: Sequence[str] = (),
        output: Path | None = None,
    ) -> Job:
        # `config` is a file of configs/digits, with its arguments after a colon; `seconds` is a
        # rough duration, for the progress bar.
        file, _, arguments = config.partition(":")
        arguments = ",".join(filter(None, (arguments, "runlocal" if self.runlocal else "")))
        path = Path("configs/digits") / f"{file}.py"
        config = f"--config={path}" + (f":{arguments}" if arguments else "")
        command = (module, config, f"--workdir={workdir}", *overrides)
        inputs = (path, Path("configs/digits/common.py"), Path("configs/arguments.py"))
        return Job(name, command, inputs, output or workdir, after, seconds)

    def finetune(self, name: str, start: str = "") -> Job:
        # Trains a stage from scratch, or from the run `start`.
        after, seconds = ((start,), 15) if start else ((), 100)
        init = (f"--config.init_from={self.root / start}",) if start else ()
        return self.job(name, "imagen_ft.finetune", name, self.root / name, after, seconds, init)

    def draw(self, name: str, task: str, folder: Path, kind: str, output: str) -> Job:
        # Draws images into a folder with the stages of one kind, 'pretrain' or 'finetune'.
        runs = {stage: self.root / f"{kind}_{stage}" for stage in ("base4", "sr8")}
        after = tuple(run.name for run in runs.values())
        stages = [f"--config.stages.{stage}.run={run}" for stage, run in runs.items()]
        module = f"imagen_ft.{task}"
        return self.job(name, module, task, folder, after, 20, stages, folder / output)

    def classify(self, arm: str) -> Job:
        # Arms without synthetic digits wait for nothing: they train beside the cascade.
        after: tuple[str, ...] = ()
        overrides = []
        if "synthetic" in ARMS[arm]:
            step, images = SETS.get(arm, ("generate", "synthetic"))
            after = (step,)
            overrides = [f"--config.train_sources.synthetic.path={self.root / images}"]
        overrides += [f"--config.seeds={self.seeds}"] if self.seeds else []
        config, workdir = f"classifier:{ARMS[arm]}", self.root / "classifiers" / arm
        return self.job(arm, "classifiers.train", config, workdir, after, 45, overrides)


def variant(job: Job, name: str, *overrides: str) -> Job:
    """A job with more overrides, and with the work directory `name` beside the original's."""
    output = job.output.with_name(name)
    command = [f"--workdir={output}" if w.startswith("--workdir=") else w for w in job.command]
    return dataclasses.replace(job, name=name, command=(*command, *overrides), output=output)


def make_runner(root: Path, jobs: Iterable[Job]) -> JobRunner:
    """A runner of `jobs`, `LANES` at a time, with logs and marks in `root`.

    Jobs that these wait for and that are not among them count as done.
    """
    jobs = list(jobs)
    names = {job.name for job in jobs}
    jobs = [
        dataclasses.replace(job, after=tuple(name for name in job.after if name in names))
        for job in jobs
    ]
    # Steps never join a cluster's job, even where environment variables (Slurm's) suggest one.
    return JobRunner(root, jobs, LANES, ENVIRONMENT, options=("--coordinator=none",))
