"""ImageNet's road at a glance: the commands of the paper's experiment, each with `runlocal`."""

from pathlib import Path

from launch.jobs.runner import Job

STAND_IN = "standin"
STAGES = ("if_i_l", "if_ii_l")


def imagenet_jobs(root: Path, data: str) -> list[Job]:
    """The command lines from the two stages of a cascade to a study of what it has drawn.

    Args:
        root: folder of all runs.
        data: a folder or zip of ImageNet's images; 'standin' for drawn ones, where the configs'
            own folder is not there either.
    """
    images = [] if data == STAND_IN else [f"data={data}"]
    generated, study = root / "generated", root / "study"

    def job(
        name: str,
        module: str,
        workdir: Path,
        output: Path,
        after: tuple[str, ...] = (),
        given: tuple[str, ...] = (),
        overrides: tuple[str, ...] = (),
    ) -> Job:
        path = Path("configs/imagenet") / f"{name}.py"
        arguments = ",".join(["runlocal", *images, *given])
        command = (module, f"--config={path}:{arguments}", f"--workdir={workdir}")
        inputs = (path, *(path.with_name(f"{other}.py") for other in ("common", "images")))
        return Job(name, (*command, *overrides), inputs, output, after)

    runs = tuple(f"--config.stages.{stage}.run={root / stage}" for stage in STAGES)
    return [
        *(job(stage, "imagen_ft.finetune", root / stage, root / stage) for stage in STAGES),
        job(
            "generate", "imagen_ft.generate", generated, generated / "manifest.json",
            STAGES, overrides=runs,
        ),
        job(
            "study", "classifiers.study", study, study / "report.html",
            ("generate",), (f"generated={generated}",), ("--jobs=2",),
        ),
    ]  # fmt: skip
