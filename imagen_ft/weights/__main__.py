"""Imports public weights, or exports an import or a run, in diffusers' layout.

It takes weights of DeepFloyd IF (deepfloyd:) and of Stable Diffusion 1, 2 and XL (diffusers:);
either prefix works for both. Import a repository of the Hugging Face Hub, or a folder:
  python -m imagen_ft.weights --from=deepfloyd:DeepFloyd/IF-I-M-v1.0 --to=weights/IF-I-M
  python -m imagen_ft.weights --from=deepfloyd:./IF-I-M --to=gs://bucket/IF-I-M --part=unet
  python -m imagen_ft.weights --from=deepfloyd:./IF-I-M --to=weights/fp16 --variant=fp16
  python -m imagen_ft.weights --from=diffusers:OWNER/NAME --to=weights/sd15 --variant=fp16

Import a single file in Stable Diffusion's original layout, converted to diffusers'; tokenizers (and
for 2.x the scheduler, which says what the weights predict) come from --pipeline:
  python -m imagen_ft.weights --from=diffusers:sd15.safetensors --to=weights/sd15 \
      --pipeline=OWNER/NAME

Export an import, byte for byte as it was:
  python -m imagen_ft.weights --from=weights/IF-I-M --to=deepfloyd:exported

Export a run of imagen_ft.finetune, with the rest of the pipeline that it started from:
  python -m imagen_ft.weights --from=runs/base64 --to=deepfloyd:exported --pipeline=weights/IF-I-M
  then, in diffusers: IFPipeline.from_pretrained("exported", safety_checker=None)

A run with config.lora is exported as its adapters (pytorch_lora_weights.safetensors), which
diffusers' load_lora_weights reads; config.stages.NAME.lora=FILE samples with any file of that kind.

IF's repositories are gated: accept their licence on their page, then `hf auth login` or HF_TOKEN.
An import needs 1.2 times the size of the weights in memory and as much on disk. If it is
interrupted, the same command starts over.
"""

import os
import sys
from collections.abc import Sequence

import jax
from absl import flags

from imagen_ft.weights.exporting import export_weights
from imagen_ft.weights.importing import import_weights
from imagen_ft.weights.part_writers import DTYPES
from imagen_ft.weights.pipeline_parts import PARTS
from imagen_ft.weights.single_file import import_file
from launch.cli import exit_code, parse_flags, say
from launch.errors import InputError

LAYOUTS = ("deepfloyd:", "diffusers:")


def define_flags(values: flags.FlagValues) -> None:
    """Adds the flags of this command."""
    text = {
        "from": "diffusers:FOLDER or diffusers:OWNER/NAME[@REVISION] imports; DIR (import or run) "
        "exports",
        "to": "DIR, local or gs://, of an import; diffusers:FOLDER of an export",
        "variant": "fp16 or bf16: import: which files to read; export: how files are named",
        "pipeline": "folder, import or OWNER/NAME; export: it has the other parts, tokenizer, "
        "schedulers and model_index.json; import of a single file: tokenizer and scheduler",
    }
    for name, help_text in text.items():
        flags.DEFINE_string(name, None, help_text, flag_values=values)
    parts = ", ".join(PARTS)
    flags.DEFINE_list(
        "part", [], f"import: {parts}; by default all that the source has", flag_values=values
    )
    flags.DEFINE_enum(
        "dtype",
        None,
        DTYPES,
        "export: dtype of the numbers (float32 for a run)",
        flag_values=values,
    )


def main(argv: Sequence[str]) -> None:
    """Parses the command line and does the work; raises `InputError` on wrong flags or files."""
    values = parse_flags(argv, __doc__ or "", define_flags)
    if values is None:
        return
    # Exactly one side names a layout: that side is outside, and tells the direction.
    source, target = (values[name].value or "" for name in ("from", "to"))
    for name, value in (("from", source), ("to", target)):
        if not _path(value):
            raise InputError(f"--{name} is missing; pass a folder (--help shows examples)")
    if source.startswith(LAYOUTS) == target.startswith(LAYOUTS):
        raise InputError(
            f"one of --from and --to must begin with {' or '.join(LAYOUTS)}, --from to "
            "import, --to to export (--help shows examples)"
        )
    if source.startswith(LAYOUTS):
        _import(_path(source), target, values)
    else:
        _export(source, _path(target), values)


def _path(value: str) -> str:
    # Without the layout's prefix.
    return value.partition(":")[2] if value.startswith(LAYOUTS) else value


def _import(source: str, target: str, values: flags.FlagValues) -> None:
    is_file = os.path.isfile(source)
    refused = {"dtype": "for exports"} | (
        {"variant": "for folders and repositories"} if is_file else {"pipeline": "for exports"}
    )
    for name, reason in refused.items():
        if values[name].value:
            raise InputError(f"--{name} is {reason}; leave it out")
    unknown = sorted(set(values.part) - set(PARTS))
    if unknown:
        raise InputError(f"--part must be one of {', '.join(PARTS)}, got {unknown[0]}")
    if is_file:
        is_new = import_file(source, target, values.part, values.pipeline)
    else:
        is_new = import_weights(source, target, values.part, values.variant)
    if is_new:
        say(f"imported {source} into {target}", sys.stdout)
    else:
        say(f"{target} already has this import of {source}", sys.stdout)


def _export(source: str, target: str, values: flags.FlagValues) -> None:
    if values.part:
        raise InputError("--part is for imports, and an export writes everything; leave it out")
    export_weights(source, target, values.pipeline, values.variant, values.dtype)
    say(f"exported {source} to {target}", sys.stdout)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns an exit code of `launch.cli`."""
    argv = list(sys.argv if argv is None else argv)
    return exit_code(
        lambda: main(argv), ("nothing incomplete was left behind; the same command starts over")
    )


if __name__ == "__main__":
    # This copies files to files: an accelerator is no help, and its memory may be too small.
    jax.config.update("jax_platforms", "cpu")
    sys.exit(run())
