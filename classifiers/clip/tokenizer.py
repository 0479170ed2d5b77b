"""Texts to the tokens of CLIP's text encoders."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from classifiers.models.clip_text import ClipTextEncoder
from launch.cli import say
from launch.errors import InputError

# Either of them holds the vocabulary; transformers reads the second with merges.txt.
_VOCABULARIES = ("tokenizer.json", "vocab.json")
# SigLIP's pieces are of sentencepiece.
_PIECES = "spiece.model"
# The folder of a run of CLIP that holds those of `TOKENIZER_FILES` that its weights have.
TOKENIZER = "tokenizer"
TOKENIZER_FILES = (
    *_VOCABULARIES,
    "merges.txt",
    _PIECES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclasses.dataclass(frozen=True)
class ClipTokenizer:
    """Pieces between a start and an end token, then padding, as the weights' own files say.

    Attributes:
        pieces: transformers' tokenizer.
        max_length: tokens a prompt, padding included.
    """

    pieces: Any
    max_length: int

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.pieces)

    def fits(self, text: ClipTextEncoder) -> bool:
        """Whether a text tower has all of its tokens, and reads a text where it ends.

        In old files 2 stands for the highest token of a text as the end.
        """
        end = self.pieces.eos_token_id
        return self.size <= text.vocab_size and (text.pool != "end" or text.end_token in (2, end))

    def __call__(self, prompts: Sequence[str], warn: bool = True) -> Int[np.ndarray, "n length"]:
        """Ids; what is too long loses its end, and a line on stderr tells it.

        Args:
            prompts: as they are.
            warn: whether to tell it.
        """
        tokens = np.full((len(prompts), self.max_length), self.pieces.pad_token_id, np.int32)
        rows = self.pieces(list(prompts), verbose=False)["input_ids"] if prompts else []
        for prompt, row, ids in zip(prompts, tokens, rows, strict=True):
            if len(ids) > self.max_length:
                end = self.pieces.decode(ids[self.max_length - 1 : -1])
                if warn:
                    say(
                        f"warning: prompt {prompt!r} has {len(ids)} tokens, the text encoder takes "
                        f"{self.max_length}: its end is cut off ({end!r})"
                    )
                ids = [*ids[: self.max_length - 1], self.pieces.eos_token_id]
            row[: len(ids)] = ids
        return tokens


def load_clip_tokenizer(folder: Path, max_length: int = 77) -> ClipTokenizer:
    """Reads the `tokenizer` folder of a pipeline or of a run of CLIP.

    Args:
        folder: holds `vocab.json` and `merges.txt`, or `tokenizer.json`; of SigLIP `spiece.model`.
        max_length: tokens a prompt: `ClipTextEncoder.max_length`.

    Raises:
        InputError: the folder holds neither, or what it holds is damaged.
    """
    if not any((folder / name).is_file() for name in (*_VOCABULARIES, _PIECES)):
        raise InputError(
            f"{folder} has no tokenizer ({' or '.join(_VOCABULARIES)}); name a folder that has"
        )
    # Importing it takes a second.
    import transformers

    try:
        siglip = (folder / _PIECES).is_file()
        kind = transformers.SiglipTokenizer if siglip else transformers.CLIPTokenizer
        pieces = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # The Rust below raises bare Exceptions.
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder}: the tokenizer cannot be read ({reason}); download it again"
        ) from error
    return ClipTokenizer(pieces, max_length)
