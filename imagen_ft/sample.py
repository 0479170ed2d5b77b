r"""Samples images of prompts and writes them as one picture, samples.png, and as single files.

python -m imagen_ft.sample --config=configs/digits/sample.py --workdir=runs/samples --prompt=seven
python -m imagen_ft.sample --config=configs/deepfloyd/sample.py --workdir=runs/if \
    --prompts=prompts.txt --path=8
python -m imagen_ft.sample --config=configs/stable_diffusion/sample.py --workdir=runs/sd \
    --prompt=goldfish

Without --prompt or --prompts, it samples every class that the cascade knows. --path=8 also writes
path.png: eight moments of the base's way from noise to each of the first images. config.start, a
source of real images, and config.skip_steps start from these in place of noise (real guidance, He
et al. 2023): from images of the class that a prompt names, or in order; the picture shows them
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

# Images in samples.png and path.png: nobody looks at more, and drawing more takes minutes.
MOST_SHOWN = 256
MOST_PATHS = 16
GRID, PATH, SETTINGS = "samples.png", "path.png", "samples.json"
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_LIMITS = {"seed": SEED, "batch_size": BATCH, "images_per_prompt": (1, 10**6)}
# Fields that samples.json leaves out: images do not depend on them, except for rounding.
OUTSIDE_SETTINGS = ("batch_size", "show_stages")


def define_flags(values: flags.FlagValues) -> None:
    """Flags of this task alone."""
    joining.define_flags(values)
    flags.DEFINE_multi_string("prompt", [], "what to draw; may be repeated", flag_values=values)
    flags.DEFINE_string(
        "prompts", None, "text file with one prompt per line, or a JSON list", flag_values=values
    )
    flags.DEFINE_string(
        "negative_prompt",
        None,
        "what not to draw (needs guidance); short for --config.negative_prompt",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "path", 0, "number of denoising steps to show in path.png; 0 for none", flag_values=values
    )


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that a config lacks and the command line can set."""
    return {**lacking_in_cascade(config), **lacking_in_start(config)}


def read_prompts(values: flags.FlagValues) -> dict[str, str]:
    """Prompts of the command line, then of the file, keyed by where they come from for messages.

    Raises `InputError` if the file cannot be read or has no prompt.
    """
    prompts = {f"--prompt number {i}": prompt for i, prompt in enumerate(values.prompt, start=1)}
    if values.prompts:
        lines = {source: line for source, line in read_lines(values.prompts) if line}
        if not lines:
            raise InputError(f"--prompts={values.prompts} has no prompt; write one per line")
        prompts |= lines
    return prompts


def main(args: app.Arguments) -> None:
    """Runs the task."""
    # 1. Read config and prompts, and check them.
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
    # 2. One prompt an image; equal ones stand together, a row of the picture.
    prompts = list(given.values()) or list(names)
    prompts = [prompt for prompt in prompts for _ in range(config.images_per_prompt)]
    if args.dry_run:
        app.describe(dataclasses.replace(args, config=config), **parameter_shapes(config))
        print(memory_table(config))
        return
    # 3. Check the folder before the models are loaded, which takes minutes; then draw.
    if not prompts:
        raise InputError("nothing to draw; give --prompt=... or --prompts=FILE")
    sizes = [stage.image_size for stage in make_stages(config).values()]
    on_first_process(lambda: check_workdir(args.workdir, prompts, sizes))
    draw(args, config, prompts)


def draw(args: app.Arguments, config: ml_collections.ConfigDict, prompts: list[str]) -> None:
    """Draws one image per prompt and writes them into the folder; `config` includes the flags.

    Raises `InputError` as `load_cascade` and `Starts.open`, or if the folder's images have other
    settings, and `Diverged` as `Cascade.stream`.
    """
    # 1. Real images to start from, if any.
    starts = Starts.open(config)
    began = starts.of_prompts(prompts, config.seed) if starts else None
    begin = dict(start=began, skip_steps=config.skip_steps) if starts else {}
    # 2. Load the cascade; several processes draw every batch together.
    mesh = make_mesh({"data": -1}) if jax.process_count() > 1 else None
    config = as_imported(config)
    cascade = load_cascade(config, mesh, prompts)
    # 3. Record what decides the images; a folder with others is refused, not mixed.
    fields = plain(config).items()
    settings = {name: value for name, value in fields if name not in OUTSIDE_SETTINGS}
    settings |= dict(prompts=prompts, weights=list(cascade.digests))
    if starts and began:
        settings |= dict(start_digest=starts.digest(), started_from=began.keys())
    on_first_process(lambda: check_same_settings(args.workdir, settings))
    # 4. Draw every stage, so that the picture can show them side by side.
    quiet = jax.process_index() > 0
    with tqdm(total=len(prompts), desc="sample", unit="image", disable=quiet) as bar:
        options = dict(seed=config.seed, progress=bar.update, **begin)
        stages = cascade.sample(prompts, every_stage=True, **options)
    shown = stages if config.show_stages else stages[-1:]

    # 5. Write the images and the picture.
    def write() -> None:
        args.workdir.mkdir(parents=True, exist_ok=True)
        write_json(args.workdir / SETTINGS, settings)
        write_images(shown, prompts, config.images_per_prompt, args.workdir, began)

    on_first_process(write)
    # 6. Draw the first images once more, keeping the base's steps, for path.png.
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
    """Writes every stage's images as files, and one picture of them and what they started from.

    `stages` has one array [b, h, w, c] a stage, coarsest first.
    """
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
    """Raises `InputError` if the folder is a file, or has images that this run will not replace.

    Images of other prompts would be mixed with these.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir must be a folder, got the file {workdir}; choose another one")
    ours = {image_name(n, prompt, size) for n, prompt in enumerate(prompts) for size in sizes}
    paths = list(workdir.iterdir()) if workdir.exists() else []
    images = {path.name for path in paths if path.suffix.lower() in IMAGES}
    # File names hold number, prompt and size: a run with the same ones overwrites its own images.
    others = sorted(images - ours - {GRID, PATH})
    if others:
        raise InputError(f"{workdir} has other images ({others[0]}); choose another --workdir")


def check_same_settings(workdir: epath.Path, settings: dict[str, Any]) -> None:
    """Raises `InputError` if the images to be replaced were drawn with other settings."""
    path = workdir / SETTINGS
    if not path.exists():
        return
    for field, (before, now) in differences(read_object(path), settings).items():
        raise InputError(
            f"{workdir} has images drawn with {field} = {before}, now it is {now}; choose another "
            "--workdir"
        )


def image_name(number: int, prompt: str, size: int) -> str:
    """File name of an image: its number, its prompt in letters and `_`, its size in pixels."""
    name = "".join(letter if letter.isalnum() else "_" for letter in prompt)
    # File systems allow 255 bytes, not letters, and an unfinished file gets a suffix.
    name = name.encode()[:80].decode(errors="ignore")
    return f"{number:05d}_{name}_{size}px.png"


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
