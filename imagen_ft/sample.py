"""Samples images of prompts and writes them as one picture, samples.png, and as single files.

python -m imagen_ft.sample --config=configs/digits/sample.py --workdir=runs/samples --prompt=seven

Without --prompt or --prompts, every class the cascade knows is sampled.
"""

from pathlib import Path

from absl import flags
from tqdm import tqdm

from imagen_ft.assembly import load_cascade, parameter_shapes
from imagen_ft.text import check_prompts
from input_pipeline.examples import encode_png
from input_pipeline.files import InputError, write_atomic
from launch.runtime import app, pictures

# A picture of more is not looked at, and takes minutes to draw.
MOST_SHOWN = 256


def define_flags(values: flags.FlagValues) -> None:
    """Flags of this task alone."""
    flags.DEFINE_multi_string("prompt", [], "what to draw; may be repeated", flag_values=values)
    flags.DEFINE_string("prompts", None, "text file, one prompt a line", flag_values=values)


def read_prompts(values: flags.FlagValues) -> dict[str, str]:
    """Prompts of the command line, then those of the file, by where they come from.

    Raises:
        InputError: the file cannot be read, or holds none.
    """
    prompts = {f"--prompt number {i}": prompt for i, prompt in enumerate(values.prompt, start=1)}
    if values.prompts:
        try:
            lines = Path(values.prompts).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--prompts={values.prompts}: cannot be read as text") from error
        found = {f"{values.prompts}:{i}": line.strip() for i, line in enumerate(lines, start=1)}
        prompts |= {place: prompt for place, prompt in found.items() if prompt}
        if not prompts:
            raise InputError(f"--prompts={values.prompts}: the file holds no prompt")
    return prompts


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config = args.config
    given = read_prompts(args.flags)
    check_prompts(list(given.values()), config.class_names, list(given))
    for field in ("batch_size", "images_per_prompt"):
        if config[field] < 1:
            raise InputError(f"config.{field}={config[field]}: at least 1 is needed")
    if args.workdir and args.workdir.exists() and not args.workdir.is_dir():
        raise InputError(f"{args.workdir} is a file: name a folder as --workdir")
    if args.dry_run:
        app.describe(config, **parameter_shapes(config))
        return
    cascade = load_cascade(config)
    prompts = list(given.values()) or list(cascade.class_names)
    prompts = [prompt for prompt in prompts for _ in range(config.images_per_prompt)]
    with tqdm(total=len(prompts), desc="sample", unit="image") as bar:
        stages = cascade.sample_stages(
            prompts, config.seed, batch_size=config.batch_size, progress=bar.update
        )
    args.workdir.mkdir(parents=True, exist_ok=True)
    shown = stages if config.show_stages else stages[-1:]
    for number, prompt in enumerate(prompts):
        for images in shown:
            path = args.workdir / image_name(number, prompt, images.shape[1])
            write_atomic(path, encode_png(images[number]))
    count = min(len(prompts), MOST_SHOWN)
    tiles = [images[number] for number in range(count) for images in shown]
    captions = [prompt for prompt in prompts[:count] for _ in shown]
    columns = config.images_per_prompt * len(shown)
    pictures.save_png(pictures.grid(tiles, captions, columns), args.workdir / "samples.png")
    print(f"wrote {len(prompts)} images; {args.workdir / 'samples.png'} shows {count} of them")


def image_name(number: int, prompt: str, size: int) -> str:
    """File name of one image: its number, its prompt where letters allow, its size in pixels."""
    name = "".join(letter if letter.isalnum() else "_" for letter in prompt)[:80]
    return f"{number:05d}_{name}_{size}px.png"


if __name__ == "__main__":
    app.run(main, __doc__, define_flags)
