"""Embeds prompts with T5 and keeps their states on disk; training and sampling read them there.

python -m imagen_ft.text --class_names=imagenet --weights=weights/IF-I-M --to=data/imagenet_text
python -m imagen_ft.text --prompts=prompts.txt --weights=weights/if --to=data/text --dtype=float32

A config then names the cache in place of an encoder: text = dict(cache="data/imagenet_text"). The
same command goes on where it stopped; another list adds the prompts that are new.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from etils import epath

from imagen_ft import weights
from imagen_ft.text import class_names
from imagen_ft.text.cache import DTYPES, TextCache
from imagen_ft.text.embedding import Embedder, fill
from imagen_ft.text.encoders import check_template, prompt_key
from imagen_ft.text.tokenizer import PREPROCESSING, T5Tokenizer, load_t5_tokenizer
from launch.cli import exit_code
from launch.errors import InputError
from launch.files import remove_temporaries
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.locks import lock


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message} (--help lists the flags)")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        InputError: a flag is unknown or missing, or has a wrong value.
    """
    parser = _Parser(
        prog="python -m imagen_ft.text",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # fmt: off
    add = parser.add_argument
    add("--prompts", metavar="FILE", help="text, one prompt a line; or .json, a list")
    add("--class_names", metavar="FILE",
        help="the same, each name once and no blank line; or 'imagenet', CLIP's 1,000 names")
    add("--num_classes", type=int, metavar="N", help="how many class names there have to be")
    add("--weights", required=True, metavar="DIR",
        help="folder with text_encoder/ and tokenizer/ (diffusers' layout, or what "
        "imagen_ft.weights has imported), or a repository on the Hugging Face Hub")
    add("--to", required=True, metavar="CACHE", help="the cache; made, or added to")
    add("--template", default="{}", metavar="TEXT",
        help="put every prompt in place of the {} of this text, as in 'a photo of a {}'; "
        "config.text.template has to be the same")
    add("--dtype", choices=DTYPES, default="bfloat16",
        help="of parameters, computation and states; default: %(default)s")
    add("--variant", help="of the files of weights, such as fp16; default: those without one")
    add("--max_length", type=int, default=77, metavar="N",
        help="tokens a prompt, padding included; default: %(default)s, as DeepFloyd IF has it")
    add("--batch_size", type=int, default=64, metavar="N",
        help="prompts at a time, over all devices; default: %(default)s")
    # fmt: on
    args = parser.parse_args(argv)
    check_template("--template", args.template)
    if bool(args.prompts) == bool(args.class_names):
        raise InputError("command line: one of --prompts and --class_names is needed")
    if args.batch_size < 1:
        raise InputError(f"--batch_size={args.batch_size}: at least 1 is needed")
    return args


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The texts to be embedded, each once: the empty one, then those of a file.

    Raises:
        InputError: the file cannot be read, holds no prompt, or is no list of class names.
    """
    if args.class_names:
        found = list(class_names.load(args.class_names, args.num_classes))
    elif args.prompts == class_names.IMAGENET:
        found = list(class_names.load(args.prompts))
    else:
        found = [prompt for _, prompt in class_names.read_lines(args.prompts) if prompt]
        if not found:
            raise InputError(
                f"--prompts={args.prompts}: the file holds no prompt; write one a line"
            )
    return list(dict.fromkeys(["", *(prompt_key(prompt, args.template) for prompt in found)]))


def embed_prompts(args: argparse.Namespace) -> None:
    """Brings the states of all prompts into the cache.

    Raises:
        InputError: wrong input, or the cache is another encoder's, damaged or in use.
    """
    prompts, folder = read_prompts(args), epath.Path(args.to)
    tokenizer = load_t5_tokenizer(weights.part_folder(args.weights, "tokenizer"), args.max_length)
    encoder = {
        "weights": weights.digest(args.weights, "text_encoder", args.variant),
        "tokenizer": tokenizer.digest,
        "max_length": args.max_length,
        "preprocessing": PREPROCESSING,
        "dtype": args.dtype,
    }
    cache, writes = open_cache(folder, encoder), jax.process_index() == 0
    missing = [prompt for prompt in prompts if cache is None or prompt not in cache]
    if missing:
        if writes and cache is not None:
            claim(folder)  # Loading takes minutes: whether another process is there is told before.
        warn_of_long(tokenizer, missing)
        # Parameters are split over all devices, and so are batches.
        mesh, dtype = make_mesh({"fsdp": -1}), jnp.dtype(args.dtype)
        model, params = weights.load_t5(args.weights, dtype, mesh, args.variant)
        embedder = Embedder(model.clone(dtype=dtype), params, tokenizer, mesh)
        if writes:
            claim(folder)
            cache = open_cache(folder, encoder)
            if cache is None:
                cache = TextCache.create(folder, encoder, embedder.shape, made_with(args))
        fill(cache if writes else None, embedder, missing, args.batch_size)
    print(f"{folder}: {len(prompts)} prompts, {len(missing)} of them new")


def made_with(args: argparse.Namespace) -> list[str]:
    """The flags that stand for the encoder."""
    names = ("weights", "variant", "dtype", "max_length")
    given = {name: getattr(args, name) for name in names}
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def claim(folder: epath.Path) -> None:
    """Keeps other processes out of a cache, and removes what one that was killed left half written.

    Raises:
        InputError: another process is at work there.
    """
    lock(folder)
    remove_temporaries(folder)


def open_cache(folder: epath.Path, encoder: Mapping[str, Any]) -> TextCache | None:
    """Opens a cache where there is one.

    Raises:
        InputError: it is another encoder's or damaged, or the folder is something else.
    """
    if (folder / "encoder.json").exists():
        cache = TextCache(folder)
        cache.check_encoder(encoder)
        return cache
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--to={folder} is a file; name a folder")
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"--to={folder}: the folder holds something else; name another")
    return None


def warn_of_long(tokenizer: T5Tokenizer, prompts: Sequence[str]) -> None:
    """Prints which prompts lose their ends."""
    long = tokenizer.too_long(prompts)
    if long:
        count = "one prompt is" if len(long) == 1 else f"{len(long)} prompts are"
        print(
            f"warning: {count} cut off after {tokenizer.max_length} tokens; first {long[0]!r}",
            file=sys.stderr,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code, by the conventions of `launch.cli`."""
    return exit_code(
        lambda: embed_prompts(parse(argv)), "the same command goes on from the last part"
    )


if __name__ == "__main__":
    sys.exit(main())
