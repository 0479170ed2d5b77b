r"""Embeds prompts with T5 or CLIP and caches the states on disk, for training and sampling.

python -m imagen_ft.text --class_names=imagenet --weights=weights/IF-I-M --to=data/imagenet_text
python -m imagen_ft.text --prompts=prompts.txt --weights=weights/IF-I-M --to=data/text \
    --dtype=float32
python -m imagen_ft.text --prompts=prompts.txt --weights=weights/sd15 --to=data/sd_text \
    --variant=fp16

A config then names the cache in place of an encoder: text = dict(cache="data/imagenet_text"). The
same command resumes where it stopped; with another list it adds the prompts that are new. All
processes of a job (--coordinator) embed every batch together.
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

from imagen_ft.text.cache import DTYPES, TextCache
from imagen_ft.text.captions import check_template, prompt_keys
from imagen_ft.text.embedder import fill_cache
from imagen_ft.text.sources import open_source
from input_pipeline import class_names
from launch.cli import parse_flags, say
from launch.errors import InputError
from launch.files import remove_temporaries
from launch.runtime.devices import job, joining
from launch.runtime.devices.distributed import decide_on_first_process, on_first_process
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.locks import lock


def define_flags(values: flags.FlagValues) -> None:
    """Adds the flags of this command."""
    joining.define_flags(values)
    text = {
        "prompts": "text file with one prompt per line, or a .json list",
        "class_names": "the same with class names, each once and no blank line; or 'imagenet' for "
        "CLIP's 1,000 names",
        "weights": "folder with text_encoder/ and tokenizer/ (diffusers' layout, or an import of "
        "imagen_ft.weights), or a repository on the Hugging Face Hub",
        "to": "folder of the cache; created if missing, otherwise added to",
        "variant": "variant of the weight files, such as fp16; by default those without a variant",
    }
    for name, help_text in text.items():
        flags.DEFINE_string(name, None, help_text, flag_values=values)
    flags.DEFINE_string(
        "template",
        "{}",
        (
            "put every prompt in place of the {} of this text, as in 'a photo of a {}'; "
            "must equal config.text.template"
        ),
        flag_values=values,
    )
    flags.DEFINE_bool(
        "clean_caption",
        True,
        "clean texts as DeepFloyd IF's pipelines do: no brackets, addresses, markup or ideographs; "
        "without it they are lower-cased only; CLIP takes them as they are",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype",
        "bfloat16",
        DTYPES,
        "dtype of parameters, computation and states; bfloat16 by default, float16 is for older "
        "GPUs",
        flag_values=values,
    )
    numbers = {
        "num_classes": (None, "the number of class names to expect"),
        "max_length": (
            77,
            "tokens per prompt, padding included; 77 by default, as in DeepFloyd IF",
        ),
        "batch_size": (64, "prompts per batch, over all devices; 64 by default"),
    }
    for name, (default, help_text) in numbers.items():
        flags.DEFINE_integer(name, default, help_text, flag_values=values)


def check_flags(values: flags.FlagValues) -> None:
    """Raises `InputError` on a wrong value, or unless exactly one source of prompts is given."""
    check_template("--template", values.template)
    if bool(values.prompts) == bool(values.class_names):
        raise InputError("command line: give either --prompts or --class_names")
    if values.batch_size < 1:
        raise InputError(f"--batch_size must be at least 1, got {values.batch_size}")


def read_prompts(values: flags.FlagValues, preprocessing: str) -> list[str]:
    """The distinct texts to embed, preprocessed: the empty one first, then those of the file.

    Raises `InputError` if the file cannot be read, holds no prompt, or is not a list of class names
    where one is asked for.
    """
    if values.class_names:
        texts = list(class_names.load(values.class_names, values.num_classes))
    elif values.prompts == class_names.IMAGENET:
        texts = list(class_names.load(values.prompts))
    else:
        texts = [prompt for _, prompt in class_names.read_lines(values.prompts) if prompt]
        if not texts:
            raise InputError(f"--prompts={values.prompts} has no prompt; write one per line")
    keys = prompt_keys(texts, values.template, preprocessing)
    # The empty text stands for "no text" in guidance: every cache needs it.
    return list(dict.fromkeys(["", *keys]))


def embed_prompts(values: flags.FlagValues) -> None:
    """Embeds all prompts; `InputError` if the cache is another encoder's, damaged or in use."""
    # 1. Identify the encoder from its files, without loading it.
    folder = epath.Path(values.to)
    source = open_source(values.weights, values.variant, values.dtype, values.max_length)
    preprocessing = source.preprocessing(values.clean_caption)
    prompts = read_prompts(values, preprocessing)
    encoder = source.identity(preprocessing)

    # 2. Find the prompts that the cache lacks. One process decides for all, as another may see an
    # older state of a shared folder.
    def look() -> list[str]:
        cache = open_cache(folder, encoder)
        missing = [prompt for prompt in prompts if cache is None or prompt not in cache]
        if missing:
            if cache is not None:
                # Loading takes minutes: notice another process at work here before that.
                claim(folder)
            source.warn_of_long(missing)
        return missing

    missing: list[str] = decide_on_first_process(look)
    # 3. Load the encoder and embed. Parameters and batches are split over all devices.
    if missing:
        embedder = source.load(make_mesh({"fsdp": -1}))
        caches: list[TextCache] = []

        def begin() -> None:
            # Another command may have made the cache while this one was loading.
            claim(folder)
            cache = open_cache(folder, encoder)
            if cache is None:
                cache = TextCache.create(folder, encoder, embedder.shape, made_with(values))
            caches.append(cache)

        # One process writes; the others only compute.
        on_first_process(begin)
        fill_cache(caches[0] if caches else None, embedder, missing, values.batch_size)
    if jax.process_index() == 0:
        say(f"{folder}: {len(prompts)} prompts, {len(missing)} of them new", sys.stdout)


def made_with(values: flags.FlagValues) -> list[str]:
    """The flags that select the encoder; messages about missing prompts repeat them."""
    names = ("weights", "variant", "dtype", "max_length")
    given = {name: values[name].value for name in names}
    given_flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return given_flags + ([] if values.clean_caption else ["--noclean_caption"])


def claim(folder: epath.Path) -> None:
    """Locks a cache and removes partial files of a killed process; `InputError` if it is locked."""
    lock(folder)
    remove_temporaries(folder)


def open_cache(folder: epath.Path, encoder: Mapping[str, Any]) -> TextCache | None:
    """Opens a cache; None if there is none yet.

    Raises `InputError` if it is another encoder's or damaged, or the folder holds something else.
    """
    if (folder / "encoder.json").exists():
        cache = TextCache(folder)
        cache.check_made_from(encoder)
        return cache
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--to must be a folder, got the file {folder}; choose a folder")
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"--to={folder} has other files in it; choose another folder")
    return None


def main(argv: Sequence[str]) -> None:
    """Parses the command line and does the work; raises `InputError` as `embed_prompts`."""
    values = parse_flags(argv, __doc__ or "", define_flags, required=("weights", "to"))
    if values is not None:
        check_flags(values)
        settings = functools.partial(job.settings, values, paths=("to",))
        job.run_together(values, settings, functools.partial(embed_prompts, values))


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns an exit code of `launch.cli`."""
    argv = list(sys.argv if argv is None else argv)
    return job.exit_code(
        lambda: main(argv), ("run the same command again to resume with the next part")
    )


if __name__ == "__main__":
    sys.exit(run())
