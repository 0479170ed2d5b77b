"""The demo's road as jobs: each step is a command line that waits for those it needs."""

import dataclasses
from collections.abc import Collection, Iterable
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

    def job(name, module, config, workdir, after, seconds, overrides=(), output=None) -> Job:
        file, _, arguments = config.partition(":")
        arguments = ",".join(filter(None, (arguments, "runlocal" if runlocal else "")))
        path = Path("configs/digits") / f"{file}.py"
        config = f"--config={path}" + (f":{arguments}" if arguments else "")
        command = (module, config, f"--workdir={workdir}", *overrides)
        inputs = (path, Path("configs/digits/common.py"), Path("configs/arguments.py"))
        return Job(name, command, inputs, output or workdir, after, seconds)

    def finetune(name: str, start: str = "") -> Job:
        after, seconds = ((start,), 15) if start else ((), 100)
        init = (f"--config.init_from={root / start}",) if start else ()
        return job(name, "imagen_ft.finetune", name, root / name, after, seconds, init)

    def draw(name: str, task: str, folder: Path, kind: str, output: str) -> Job:
        runs = {stage: root / f"{kind}_{stage}" for stage in ("base4", "sr8")}
        after = tuple(run.name for run in runs.values())
        stages = [f"--config.stages.{stage}.run={run}" for stage, run in runs.items()]
        return job(name, f"imagen_ft.{task}", task, folder, after, 20, stages, folder / output)

    def classify(arm: str, arguments: str) -> Job:
        after: tuple[str, ...] = ()
        overrides = []
        if "generated" in arguments:
            step, images = SETS.get(arm, ("generate", "generated"))
            after = (step,)
            overrides = [f"--config.train_sources.generated.path={root / images}"]
        overrides += [f"--config.seeds={seeds}"] if seeds else []
        config, workdir = f"classifier:{arguments}", root / "classifiers" / arm
        return job(arm, "classifiers.train", config, workdir, after, 45, overrides)

    manifest, folder = "manifest.json", root / "classifiers"
    return [
        finetune("pretrain_base4"),
        finetune("pretrain_sr8"),
        finetune("finetune_base4", "pretrain_base4"),
        finetune("finetune_sr8", "pretrain_sr8"),
        draw("generate", "generate", root / "generated", "finetune", manifest),
        *(
            draw(step, "generate", root / images, "pretrain", manifest)
            for arm, (step, images) in SETS.items()
            if arm in arms
        ),
        draw("samples", "sample", root / "samples", "finetune", "samples.png"),
        *(classify(arm, ARMS[arm]) for arm in arms),
        job(
            "evaluate", "classifiers.evaluate", "evaluate", folder, tuple(arms), 15, (),
            folder / "evaluation_test.json",
        ),
    ]  # fmt: skip


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
