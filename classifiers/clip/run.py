"""Finished runs of CLIP: imports of classifiers.weights, and trained ones."""

import dataclasses
import functools
from pathlib import Path

import jax
from etils import epath

from classifiers import from_config
from classifiers.clip.tokenizer import TOKENIZER, ClipTokenizer, load_clip_tokenizer
from classifiers.models import clip
from classifiers.models.clip import Clip
from input_pipeline.augment.policy import Transform
from launch.errors import InputError
from launch.runtime.config import plain
from launch.runtime.ema import MAIN
from launch.runtime.run import CLIP, Run
from launch.runtime.types import Variables


@dataclasses.dataclass(frozen=True)
class ClipRun:
    """A run of CLIP; its weights are read when they are first used."""

    run: Run
    model: Clip
    ema: str  # which moving average of the weights counts
    best: bool  # those of the best step, instead of the last

    @classmethod
    def open(cls, path: epath.PathLike, ema: str = MAIN, best: bool = False) -> "ClipRun":
        """Opens the run at `path`; `ema` and `best` are as of `Run.variables`.

        Raises:
            InputError: there is no such run, it is of another family, or it is not finished.
        """
        run = Run.open(path)
        if run.kind != CLIP:
            raise InputError(
                f"{path} must be a CLIP run, got another kind of run; import CLIP weights with "
                "classifiers.weights"
            )
        run.check_finished()
        return cls(run, clip.make(plain(run.config.clip)), ema, best)

    @property
    def name(self) -> str:
        """What its results are called."""
        return self.run.path.name

    @functools.cached_property
    def digest(self) -> str:
        """Checksum of its weights."""
        return self.run.digest(self.ema, self.best)

    @functools.cached_property
    def variables(self) -> Variables:
        """Variables of both towers, on the default device."""
        return jax.device_put(self.run.variables(self.run.shapes(), self.ema, self.best))

    @property
    def transform(self) -> Transform | None:
        """What happens to an image before the network sees it."""
        return from_config.make_transform(self.run.config)

    @property
    def rule(self) -> str:
        """`transform` in words."""
        fields = sorted(plain(self.run.config.get("evaluation") or {}).items())
        return ", ".join(f"{name} {value}" for name, value in fields if value) or "whole images"

    @functools.cached_property
    def tokenizer(self) -> ClipTokenizer:
        """The tokenizer of its texts.

        Raises:
            InputError: it has none, or one that does not fit its text tower.
        """
        folder, text = self.run.path / TOKENIZER, self.model.text
        if not folder.exists():
            raise InputError(
                f"{self.run.path}: its weights were imported without a tokenizer; import them "
                "again with --tokenizer=DIR"
            )
        tokenizer = load_clip_tokenizer(Path(folder), text.max_length)
        if not tokenizer.fits(text):
            raise InputError(
                f"{folder}: the tokenizer must have at most {text.vocab_size} tokens and the end "
                f"token {text.end_token}, got {tokenizer.size} and "
                f"{tokenizer.pieces.eos_token_id}; use the tokenizer of this model"
            )
        return tokenizer
