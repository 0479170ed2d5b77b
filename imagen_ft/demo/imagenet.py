"""ImageNet's pipeline in miniature: the commands of the paper's experiment, with `runlocal`."""

from pathlib import Path

from launch.jobs.runner import Job

STAND_IN = "standin"  # of --imagenet: no images of ImageNet at hand
STAGES = ("if_i_l", "if_ii_l")


def imagenet_jobs(root: Path, data: str) -> list[Job]:
    """The jobs from fine-tuning the two stages of a cascade to a study of the images it draws.

    `data` is a folder or zip of ImageNet's images. With 'standin' the configs' own folder is used
    if it exists, else drawn shapes.
    """
    images = [] if data == STAND_IN else [f"data={data}"]
    synthetic, study = root / "synthetic", root / "study"

    def job(
        name: str,
        module: str,
        workdir: Path,
        output: Path,
        after: tuple[str, ...] = (),
        given: tuple[str, ...] = (),
        overrides: tuple[str, ...] = (),
    ) -> Job:
        # `inputs` are the files whose changes make a finished step run again.
        path = Path("configs/imagenet") / f"{name}.py"
        arguments = ",".join(["runlocal", *images, *given])
        command = (module, f"--config={path}:{arguments}", f"--workdir={workdir}")
        inputs = (path, *(path.with_name(f"{other}.py") for other in ("common", "images")))
        return Job(name, (*command, *overrides), inputs, output, after)

    # Drawing waits for both stages; the study compares real images with the drawn set.
    runs = tuple(f"--config.stages.{stage}.run={root / stage}" for stage in STAGES)
    return [
        *(job(stage, "imagen_ft.finetune", root / stage, root / stage) for stage in STAGES),
        job(
            "generate", "imagen_ft.generate", synthetic, synthetic / "manifest.json",
            STAGES, overrides=runs,
        ),
        job(
            "study", "classifiers.study", study, study / "report.html",
            ("generate",), (f"synthetic={synthetic}",), ("--jobs=2",),
        ),
    ]  # fmt: skip
