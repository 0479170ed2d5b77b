"""Published text encoders, T5's or CLIP's, found under a path but not loaded."""

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from classifiers.clip.tokenizer import ClipTokenizer, load_clip_tokenizer
from classifiers.models.clip_text import ClipTextEncoder
from imagen_ft import weights
from imagen_ft.text.captions import AS_IT_IS, CLEANED, PLAIN
from imagen_ft.text.clip_embedder import ClipEmbedder, clip_shape
from imagen_ft.text.embedder import Embedder
from imagen_ft.text.t5_embedder import T5Embedder
from imagen_ft.text.tokenizer import T5Tokenizer, folder_digest, load_t5_tokenizer
from imagen_ft.weights.pipeline_parts import NoSuchPart
from launch.cli import say
from launch.errors import InputError
from launch.files import read_object
from launch.runtime.limits import SIDE, check_numbers

# CLIP's tokenizers have the first file and T5's do not. New versions of transformers may not write
# it: then the second one tells.
_OF_CLIP, _SETTINGS = "merges.txt", "tokenizer_config.json"


@dataclasses.dataclass(frozen=True)
class TextSource(abc.ABC):
    """A published text encoder that is not loaded."""

    path: str  # as for `weights.load_part`
    variant: str | None
    dtype: str  # of parameters, computation and states

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """[length, d] of one prompt's states."""

    @abc.abstractmethod
    def preprocessing(self, clean_caption: bool) -> str:
        """How texts are preprocessed: one of `captions.KINDS`."""

    @abc.abstractmethod
    def identity(self, preprocessing: str) -> dict[str, Any]:
        """Everything that decides the states of a prompt; equal identities give equal states."""

    @abc.abstractmethod
    def load(self, mesh: Mesh) -> Embedder:
        """Loads the weights, sharded over a mesh; raises `InputError` if they are damaged."""

    @abc.abstractmethod
    def warn_of_long(self, prompts: Sequence[str]) -> None:
        """Warns about prompts that will be cut off, unless the embedder does."""


@dataclasses.dataclass(frozen=True)
class T5Source(TextSource):
    """T5; see `TextSource`."""

    tokenizer: T5Tokenizer
    width: int = 0  # channels of the states; 0: read it from the weights' config

    @property
    def shape(self) -> tuple[int, int]:
        """See `TextSource`."""
        width = self.width or weights.open_t5(self.path, self.variant)[0].d_model
        return self.tokenizer.max_length, width

    def preprocessing(self, clean_caption: bool) -> str:
        """See `TextSource`."""
        return CLEANED if clean_caption else PLAIN

    def identity(self, preprocessing: str) -> dict[str, Any]:
        """See `TextSource`."""
        return {
            "weights": weights.digest(self.path, "text_encoder", self.variant),
            "tokenizer": self.tokenizer.digest,
            "max_length": self.tokenizer.max_length,
            "preprocessing": preprocessing,
            "dtype": self.dtype,
        }

    def load(self, mesh: Mesh) -> Embedder:
        """See `TextSource`."""
        dtype = jnp.dtype(self.dtype)
        model, params = weights.load_t5(self.path, dtype, mesh, self.variant)
        return T5Embedder(model.clone(dtype=dtype), params, self.tokenizer, mesh)

    def warn_of_long(self, prompts: Sequence[str]) -> None:
        """See `TextSource`."""
        long = self.tokenizer.too_long(prompts)
        if long:
            count = "one prompt is" if len(long) == 1 else f"{len(long)} prompts are"
            say(
                f"warning: {count} cut off after {self.tokenizer.max_length} tokens; first "
                f"{long[0]!r}"
            )


@dataclasses.dataclass(frozen=True)
class ClipSource(TextSource):
    """The text encoder of a Stable Diffusion, or the two of SDXL; see `TextSource`."""

    parts: tuple[str, ...]  # of the pipeline; models, tokenizers and checksums have the same order
    models: tuple[ClipTextEncoder, ...]
    tokenizers: tuple[ClipTokenizer, ...]
    digests: tuple[str, ...]  # checksums of the tokenizers

    @property
    def shape(self) -> tuple[int, int]:
        """See `TextSource` and `clip_embedder.states_of`."""
        return clip_shape(self.models, self.tokenizers[0].max_length)

    def preprocessing(self, clean_caption: bool) -> str:
        """See `TextSource`: the tokenizer does everything."""
        return AS_IT_IS

    def identity(self, preprocessing: str) -> dict[str, Any]:
        """See `TextSource`."""
        digests = [weights.digest(self.path, part, self.variant) for part in self.parts]
        return {
            "weights": " ".join(digests),
            "tokenizer": " ".join(self.digests),
            "max_length": self.tokenizers[0].max_length,
            "preprocessing": preprocessing,
            "dtype": self.dtype,
        }

    def load(self, mesh: Mesh) -> Embedder:
        """See `TextSource`."""
        dtype = jnp.dtype(self.dtype)
        loaded = [weights.load_part(p, self.path, dtype, mesh, self.variant) for p in self.parts]
        models = tuple(model.clone(dtype=dtype) for model, _ in loaded)
        return ClipEmbedder(models, tuple(params for _, params in loaded), self.tokenizers, mesh)

    def warn_of_long(self, prompts: Sequence[str]) -> None:
        """Nothing: the tokenizer warns, see `ClipEmbedder.tokens`."""


def open_source(
    path: str, variant: str | None, dtype: str, max_length: int, width: int = 0
) -> T5Source | ClipSource:
    """The text encoder of a pipeline; its tokenizer tells which kind it is.

    `max_length` is in tokens, padding included; CLIP's own maximum limits it. `width`, of T5's
    states, is 0 if unknown. Raises `InputError` if there is no text encoder or tokenizer, one is
    damaged, or they are of different kinds.
    """
    # 1. T5 has one encoder.
    check_numbers(dict(max_length=max_length), {"max_length": SIDE}, "text")
    folder = weights.part_folder(path, "tokenizer")
    if not _is_of_clip(folder):
        return T5Source(path, variant, dtype, load_t5_tokenizer(folder, max_length), width)
    # 2. CLIP: SDXL has a second encoder with a tokenizer of its own.
    folders = {"text_encoder": folder}
    if (second := _second_tokenizer(path)) not in (None, folder):
        folders["text_encoder_2"] = second
    elif (Path(path) / "text_encoder_2").exists():
        raise InputError(
            f"{path} must have a tokenizer_2 for its text_encoder_2, got none; download it again"
        )
    # 3. Read the configs, not the weights.
    models = []
    for part in folders:
        model, _ = weights.open_model(part, path, variant)
        if not isinstance(model, ClipTextEncoder):
            raise InputError(
                f"{path}: {part} must be CLIP's, like its tokenizer, got a {type(model).__name__}; "
                "choose a whole pipeline"
            )
        models.append(model)
    length = min(max_length, *(model.max_length for model in models))
    tokenizers = tuple(load_clip_tokenizer(folder, length) for folder in folders.values())
    digests = tuple(folder_digest(folder) for folder in folders.values())
    return ClipSource(path, variant, dtype, tuple(folders), tuple(models), tokenizers, digests)


def _is_of_clip(folder: Path) -> bool:
    if (folder / _OF_CLIP).is_file():
        return True
    settings = read_object(folder / _SETTINGS) if (folder / _SETTINGS).is_file() else {}
    return "CLIP" in str(settings.get("tokenizer_class"))


def _second_tokenizer(path: str) -> Path | None:
    try:
        return weights.part_folder(path, "tokenizer_2")
    except NoSuchPart:
        return None
