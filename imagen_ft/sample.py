r"""Samples images of prompts and writes them as one picture, samples.png, and as single files.

python -m imagen_ft.sample --config=configs/digits/sample.py --workdir=runs/samples --prompt=seven
python -m imagen_ft.sample --config=configs/deepfloyd/sample.py --workdir=runs/if \
    --prompts=prompts.txt --path=8
python -m imagen_ft.sample --config=configs/stable_diffusion/sample.py --workdir=runs/sd \
    --prompt=goldfish

Without --prompt or --prompts, every class the cascade knows is sampled. --path=8 also writes
path.png: eight moments of the base's way from noise to each of the first images. config.start, a
source of real images, and config.skip_steps begin with these in place of noise (real guidance, He
et al. 2023): with images of the class that a prompt names, or in order; the picture shows them
first. The processes of a job (--coordinator) draw together, and the first one writes.
"""

import dataclasses
import sys
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from imagen_ft.cascade import film, load_cascade, memory_table, show
from imagen_ft.cascade.imported import as_imported
from imagen_ft.cascade.loading import lacking_in_cascade, parameter_shapes, with_dtypes
from imagen_ft.cascade.starts import RealImages, Starts, check_start, lacking_in_start
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.text.encoders import check_prompts
from input_pipeline import class_names
from input_pipeline.class_names import read_lines
from input_pipeline.records.image_codec import encode_png
from launch.cli import say
from launch.errors import InputError
from launch.files import differences, read_object, write_atomic, write_json
from launch.runtime import app
from launch.runtime.config import plain
from launch.runtime.devices import joining
from launch.runtime.devices.distributed import on_first_process
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.limits import BATCH, SEED, check_numbers
from launch.runtime.optional_fields import Defaults

# A picture of more is not looked at, and takes minutes to draw.
MOST_SHOWN = 256
MOST_PATHS = 16
GRID, PATH, SETTINGS = "samples.png", "path.png", "samples.json"
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_LIMITS = {"seed": SEED, "batch_size": BATCH, "images_per_prompt": (1, 10**6)}
# Fields of the config that samples.json leaves out: no image depends on them, or in its last bits.
OUTSIDE_SETTINGS = ("batch_size", "show_stages")


def define_flags(values: flags.FlagValues) -> None:
    """Flags of this task alone."""
    joining.define_flags(values)
    flags.DEFINE_multi_string("prompt", [], "what to draw; may be repeated", flag_values=values)
    flags.DEFINE_string(
        "prompts", None, "text file, one prompt a line, or a JSON list", flag_values=values
    )
    flags.DEFINE_string(
        "negative_prompt",
        None,
        "what not to draw, where there is guidance; short for --config.negative_prompt",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "path", 0, "number of denoising steps that path.png shows; 0 for none", flag_values=values
    )


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that a config lacks and the command line can set."""
    return {**lacking_in_cascade(config), **lacking_in_start(config)}


def read_prompts(values: flags.FlagValues) -> dict[str, str]:
    """Prompts of the command line, then those of the file, by where they come from.

    Raises:
        InputError: the file cannot be read, or holds none.
    """
    prompts = {f"--prompt number {i}": prompt for i, prompt in enumerate(values.prompt, start=1)}
    if values.prompts:
        lines = {source: line for source, line in read_lines(values.prompts) if line}
        if not lines:
            raise InputError(f"--prompts={values.prompts} has no prompt; write one a line")
        prompts |= lines
    return prompts


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config = with_dtypes(args.config)
    if args.flags.negative_prompt is not None:
        with config.unlocked():
            config.negative_prompt = args.flags.negative_prompt
    given = read_prompts(args.flags)
    names = class_names.resolve(config.class_names)
    check_prompts(list(given.values()), names, list(given))
    check_numbers(config, _LIMITS)
    check_start(config)
    if args.flags.path < 0:
        raise InputError(
            f"--path must be a number of steps to show, or 0 for none, got {args.flags.path}"
        )
    prompts = list(given.values()) or list(names)
    prompts = [prompt for prompt in prompts for _ in range(config.images_per_prompt)]
    if args.dry_run:
        app.describe(dataclasses.replace(args, config=config), **parameter_shapes(config))
        print(memory_table(config))
        return
    if not prompts:
        raise InputError("nothing to draw; give --prompt=... or --prompts=FILE")
    sizes = [stage.image_size for stage in make_stages(config).values()]
    on_first_process(lambda: check_workdir(args.workdir, prompts, sizes))
    draw(args, config, prompts)


def draw(args: app.Arguments, config: ml_collections.ConfigDict, prompts: list[str]) -> None:
    """Draws the images and writes them into the folder.

    Args:
        args: of the command.
        config: its config, with the flags in it.
        prompts: one an image.

    Raises:
        InputError: see `load_cascade` and `Starts.open`; or the folder has other settings.
        Diverged: see `Cascade.stream`.
    """
    starts = Starts.open(config)
    began = starts.of_prompts(prompts, config.seed) if starts else None
    begin = dict(start=began, skip_steps=config.skip_steps) if starts else {}
    # Several processes draw every batch together.
    mesh = make_mesh({"data": -1}) if jax.process_count() > 1 else None
    config = as_imported(config)
    cascade = load_cascade(config, mesh, prompts)
    fields = plain(config).items()
    settings = {name: value for name, value in fields if name not in OUTSIDE_SETTINGS}
    settings |= dict(prompts=prompts, weights=list(cascade.digests))
    if starts and began:
        settings |= dict(start_digest=starts.digest(), started_from=began.keys())
    on_first_process(lambda: check_same_settings(args.workdir, settings))
    quiet = jax.process_index() > 0
    with tqdm(total=len(prompts), desc="sample", unit="image", disable=quiet) as bar:
        options = dict(seed=config.seed, progress=bar.update, **begin)
        stages = cascade.sample(prompts, every_stage=True, **options)
    shown = stages if config.show_stages else stages[-1:]

    def write() -> None:
        args.workdir.mkdir(parents=True, exist_ok=True)
        write_json(args.workdir / SETTINGS, settings)
        write_images(shown, prompts, config.images_per_prompt, args.workdir, began)

    on_first_process(write)
    if args.flags.path:
        prompts = prompts[:MOST_PATHS]
        if began:
            begin["start"] = began[:MOST_PATHS]
        steps = cascade.path(prompts, config.seed, **begin)
        picture = film(steps, prompts, args.flags.path)
        on_first_process(lambda: picture.save(args.workdir / PATH))


def write_images(
    stages: list[np.ndarray],
    prompts: list[str],
    images_per_prompt: int,
    workdir: epath.Path,
    began: RealImages | None = None,
) -> None:
    """Writes single files of every stage, and one picture of them all and what they began with."""
    for number, prompt in enumerate(prompts):
        for images in stages:
            path = workdir / image_name(number, prompt, images.shape[1])
            write_atomic(path, encode_png(images[number]))
    count = min(len(prompts), MOST_SHOWN)
    columns = [images[:count] for images in ([began] if began else []) + stages]
    picture = show(columns, prompts[:count], images_per_prompt)
    picture.save(workdir / GRID)
    say(f"wrote {len(prompts)} images; {workdir / GRID} shows {count} of them", sys.stdout)


def check_workdir(workdir: epath.Path, prompts: list[str], sizes: list[int]) -> None:
    """Looks for images of other prompts, among which these would be lost.

    Raises:
        InputError: there are some, or the folder is a file.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir must be a folder, got the file {workdir}; name another one")
    ours = {image_name(n, prompt, size) for n, prompt in enumerate(prompts) for size in sizes}
    paths = list(workdir.iterdir()) if workdir.exists() else []
    images = {path.name for path in paths if path.suffix.lower() in IMAGES}
    others = sorted(images - ours - {GRID, PATH})
    if others:
        raise InputError(f"{workdir} has other images ({others[0]}); name another --workdir")


def check_same_settings(workdir: epath.Path, settings: dict[str, Any]) -> None:
    """Compares with what the images that are there were drawn with; they would be replaced.

    Raises:
        InputError: it was something else.
    """
    path = workdir / SETTINGS
    if not path.exists():
        return
    for field, (before, now) in differences(read_object(path), settings).items():
        raise InputError(
            f"{workdir} has images drawn with {field} = {before}, now it is {now}; name "
            "another --workdir"
        )


def image_name(number: int, prompt: str, size: int) -> str:
    """File name of one image: its number, its prompt where letters allow, its size in pixels."""
    name = "".join(letter if letter.isalnum() else "_" for letter in prompt)
    # File systems count bytes, at most 255 with what an unfinished file has behind its name.
    name = name.encode()[:80].decode(errors="ignore")
    return f"{number:05d}_{name}_{size}px.png"


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
