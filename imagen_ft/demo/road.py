"""The demo's road as jobs: each step is a command line that waits for those it needs."""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from configs.digits.common import ENVIRONMENT
from launch.jobs.runner import Job, JobRunner

ARMS = {
    "real": "arm=real",
    "pool": "arm=pool",
    "generated": "arm=generated,k=30",
    "pretrained": "arm=generated,k=30",
    "real+generated_1x": "arm=real+generated,k=1",
    "real+generated_10x": "arm=real+generated,k=10",
    "real+generated_30x": "arm=real+generated,k=30",
}
# Whose digits are not the fine-tuned cascade's: the step that draws them, and its folder.
SETS = {"pretrained": ("generate_pretrained", "pretrained")}
LANES = 2


def digits_jobs(
    root: Path, runlocal: bool, arms: Collection[str] = tuple(ARMS), seeds: int = 0
) -> list[Job]:
    """The command lines of the road, below `root`.

    Args:
        root: folder of all runs.
        runlocal: a few steps of all.
        arms: keys of `ARMS`: which classifiers are trained and compared.
        seeds: of each; 0 is as many as the config has.
    """
    road = _Road(root, runlocal, seeds)
    manifest, folder = "manifest.json", root / "classifiers"
    return [
        road.finetune("pretrain_base4"),
        road.finetune("pretrain_sr8"),
        road.finetune("finetune_base4", "pretrain_base4"),
        road.finetune("finetune_sr8", "pretrain_sr8"),
        road.draw("generate", "generate", root / "generated", "finetune", manifest),
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
    """Makes the jobs of `digits_jobs`, which says what the fields are."""

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
        """A command with an experiment of the digits, `config`, with arguments behind a colon."""
        file, _, arguments = config.partition(":")
        arguments = ",".join(filter(None, (arguments, "runlocal" if self.runlocal else "")))
        path = Path("configs/digits") / f"{file}.py"
        config = f"--config={path}" + (f":{arguments}" if arguments else "")
        command = (module, config, f"--workdir={workdir}", *overrides)
        inputs = (path, Path("configs/digits/common.py"), Path("configs/arguments.py"))
        return Job(name, command, inputs, output or workdir, after, seconds)

    def finetune(self, name: str, start: str = "") -> Job:
        """A stage of that name, trained from scratch or from the run `start`."""
        after, seconds = ((start,), 15) if start else ((), 100)
        init = (f"--config.init_from={self.root / start}",) if start else ()
        return self.job(name, "imagen_ft.finetune", name, self.root / name, after, seconds, init)

    def draw(self, name: str, task: str, folder: Path, kind: str, output: str) -> Job:
        """Images into a folder, by the stages of one kind, 'pretrain' or 'finetune'."""
        runs = {stage: self.root / f"{kind}_{stage}" for stage in ("base4", "sr8")}
        after = tuple(run.name for run in runs.values())
        stages = [f"--config.stages.{stage}.run={run}" for stage, run in runs.items()]
        module = f"imagen_ft.{task}"
        return self.job(name, module, task, folder, after, 20, stages, folder / output)

    def classify(self, arm: str) -> Job:
        """The classifiers of an arm."""
        after: tuple[str, ...] = ()
        overrides = []
        if "generated" in ARMS[arm]:
            step, images = SETS.get(arm, ("generate", "generated"))
            after = (step,)
            overrides = [f"--config.train_sources.generated.path={self.root / images}"]
        overrides += [f"--config.seeds={self.seeds}"] if self.seeds else []
        config, workdir = f"classifier:{ARMS[arm]}", self.root / "classifiers" / arm
        return self.job(arm, "classifiers.train", config, workdir, after, 45, overrides)


def variant(job: Job, name: str, *overrides: str) -> Job:
    """A job with other settings, whose work directory is the folder `name` beside the job's."""
    output = job.output.with_name(name)
    command = [f"--workdir={output}" if w.startswith("--workdir=") else w for w in job.command]
    return dataclasses.replace(job, name=name, command=(*command, *overrides), output=output)


def make_runner(root: Path, jobs: Iterable[Job]) -> JobRunner:
    """Runs jobs of the road, `LANES` at a time.

    Args:
        root: where their logs and marks are.
        jobs: those that are not among them count as done.
    """
    jobs = list(jobs)
    names = {job.name for job in jobs}
    jobs = [
        dataclasses.replace(job, after=tuple(name for name in job.after if name in names))
        for job in jobs
    ]
    # Its steps are no tasks of a cluster's job, whatever the variables around it say.
    return JobRunner(root, jobs, LANES, ENVIRONMENT, options=("--coordinator=none",))
