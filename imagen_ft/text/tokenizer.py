"""Tokenizers: bytes for our own models, T5's pieces for DeepFloyd IF."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from launch.errors import InputError
from launch.files import sha256

# ByT5's convention (Xue et al. 2022): three special ids (2 is "unknown"), then the 256 bytes.
PAD, END, FIRST_BYTE = 0, 1, 3
VOCABULARY = FIRST_BYTE + 256

# Files of a tokenizer's folder that decide its tokens.
_VOCABULARIES = ("tokenizer.json", "spiece.model")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_OF_CLIP = ("vocab.json", "merges.txt")

Tokens = tuple[Int[np.ndarray, "n length"], Bool[np.ndarray, "n length"]]


def tokenize(prompts: Sequence[str], max_length: int) -> Tokens:
    """UTF-8 bytes, an end token, padding; and a mask that is False on padding.

    Raises `InputError` naming a prompt that is too long.
    """
    tokens = np.full((len(prompts), max_length), PAD, np.int32)
    for row, prompt in enumerate(prompts):
        ids = [FIRST_BYTE + byte for byte in prompt.encode()] + [END]
        if len(ids) > max_length:
            raise InputError(
                f"prompt {prompt!r} must have at most text.max_length={max_length} tokens, "
                f"got {len(ids)}"
            )
        tokens[row, : len(ids)] = ids
    return tokens, tokens != PAD


@dataclasses.dataclass(frozen=True)
class T5Tokenizer:
    """DeepFloyd IF's tokens for T5: pieces, an end token, padding; long prompts are cut."""

    pieces: Any  # transformers' tokenizer
    max_length: int  # tokens a prompt, padding included
    digest: str  # checksum of the files that it was read from

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Ids of preprocessed prompts, and a mask that is False on padding."""
        batch = self.pieces(
            list(prompts), padding="max_length", max_length=self.max_length, truncation=True
        )
        return np.asarray(batch["input_ids"], np.int32), np.asarray(batch["attention_mask"], bool)

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """The prompts whose ends will be cut off."""
        # verbose=False: transformers would print a warning of its own.
        ids = self.pieces(list(prompts), verbose=False)["input_ids"] if prompts else []
        return [
            prompt for prompt, row in zip(prompts, ids, strict=True) if len(row) > self.max_length
        ]


def load_t5_tokenizer(folder: Path, max_length: int = 77) -> T5Tokenizer:
    """Reads a pipeline's `tokenizer` folder: `tokenizer.json`, or the usual `spiece.model` alone.

    IF was trained with 77 tokens (diffusers, pipeline_if.py). Raises `InputError` if the folder has
    neither file, or they are damaged.
    """
    if max_length < 2:
        raise InputError(f"max_length must be at least 2 tokens, got {max_length}")
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise InputError(
            f"{folder} has no tokenizer ({' or '.join(_VOCABULARIES)}); choose a folder that has "
            "one"
        )
    # Imported here: it takes a second, and only this function needs it.
    import transformers

    try:
        if not (folder / "tokenizer.json").is_file():
            _check_pieces(folder / "spiece.model")
        pieces = transformers.T5Tokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust code underneath raises bare Exceptions
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder}: the tokenizer cannot be read ({reason}); download it again"
        ) from error
    return T5Tokenizer(pieces, max_length, folder_digest(folder))


def _check_pieces(path: Path) -> None:
    # transformers takes a damaged spiece.model for a file of another library: check it first.
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = model.pad_id(), model.eos_id(), model.unk_id()
    if ids != (0, 1, 2):
        raise ValueError(f"{path.name}: T5's ids of pad, end, unknown must be 0, 1, 2, got {ids}")


def folder_digest(folder: Path) -> str:
    """Checksum of the files that decide a tokenizer's tokens, T5's or CLIP's."""
    paths = [folder / name for name in (*_VOCABULARIES, *_SETTINGS, *_OF_CLIP)]
    lines = [f"{path.name} {sha256(path)}\n" for path in paths if path.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
