"""From texts to the tokens of CLIP's text encoders."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from classifiers.models.clip_text import ClipTextEncoder
from launch.cli import say
from launch.errors import InputError

# Either holds the vocabulary; transformers reads the second together with merges.txt.
_VOCABULARIES = ("tokenizer.json", "vocab.json")
# SigLIP's vocabulary, of sentencepiece.
_PIECES = "spiece.model"
# The folder in a run of CLIP with those of `TOKENIZER_FILES` that its weights had.
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
    """Pieces between a start and an end token, then padding, as the weights' own files say."""

    pieces: Any  # transformers' tokenizer
    max_length: int  # tokens of a text, padding included

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.pieces)

    def fits(self, text: ClipTextEncoder) -> bool:
        """Whether a text tower has all of its tokens, and pools where its texts end."""
        # An end token of 2, in old files, means the highest id of a text.
        end = self.pieces.eos_token_id
        return self.size <= text.vocab_size and (text.pool != "end" or text.end_token in (2, end))

    def __call__(self, prompts: Sequence[str], warn: bool = True) -> Int[np.ndarray, "n length"]:
        """Token ids; texts that are too long lose their end, with a warning on stderr."""
        # Padding.
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
                # Keeps the end token, where the tower pools.
                ids = [*ids[: self.max_length - 1], self.pieces.eos_token_id]
            row[: len(ids)] = ids
        return tokens


def load_clip_tokenizer(folder: Path, max_length: int = 77) -> ClipTokenizer:
    """Reads the `tokenizer` folder of a pipeline or of a run of CLIP.

    Raises:
        InputError: the folder has no vocabulary, or a damaged one.
    """
    if not any((folder / name).is_file() for name in (*_VOCABULARIES, _PIECES)):
        raise InputError(
            f"{folder} has no tokenizer ({' or '.join(_VOCABULARIES)}); choose a folder that has "
            "one"
        )
    # The import takes a second.
    import transformers

    try:
        siglip = (folder / _PIECES).is_file()
        kind = transformers.SiglipTokenizer if siglip else transformers.CLIPTokenizer
        pieces = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust library below raises bare Exceptions
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder}: the tokenizer cannot be read ({reason}); download it again"
        ) from error
    return ClipTokenizer(pieces, max_length)
