"""Text encoders of a config: with fixed random weights, published weights, or cached states."""

import dataclasses
import difflib
import functools
import shlex
from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float

from imagen_ft.models.t5 import T5Encoder
from imagen_ft.text.cache import DTYPES, TextCache
from imagen_ft.text.captions import KINDS, PLAIN, check_template, text_keys
from imagen_ft.text.loaded import LoadedTextEncoder
from imagen_ft.text.sources import ClipSource, open_source
from imagen_ft.text.tokenizer import VOCABULARY, tokenize
from launch.errors import InputError
from launch.files import is_utf8
from launch.runtime.config import module_fields
from launch.runtime.limits import SEED, SIDE, building, check_numbers, make_module
from launch.runtime.optional_fields import Defaults, below, defaults_of, unset

# Prompts a batch for the encoder with fixed weights.
BATCH_SIZE = 16


@runtime_checkable
class TextEncoder(Protocol):
    """Turns prompts into the states that the denoisers are conditioned on."""

    @property
    def shape(self) -> tuple[int, int]:
        """[length, d] of one prompt's states."""

    def embed(
        self, prompts: Sequence[str], nulls: Sequence[str] = ()
    ) -> Float[np.ndarray, "n length d"]:
        """Float32 states of `prompts`, then of `nulls`; padding is kept.

        Nulls stand for no text in guidance: negative prompts, or the empty one, see `null`.
        """

    def null(self) -> Float[np.ndarray, "1 length d"]:
        """The states that stand for no text: those of the empty prompt, or zeros."""

    def parameters(self) -> dict:
        """Shapes of the weights that it keeps in memory."""

    @property
    def digest(self) -> str:
        """Checksum of what decides the states and is not in the config; '' if there is nothing."""


@dataclasses.dataclass(frozen=True)
class FixedTextEncoder:
    """A frozen T5 encoder with weights drawn from a fixed seed: it needs no download.

    Distinct prompts get distinct states, which is enough for a closed list of class names.
    """

    model: T5Encoder
    max_length: int  # tokens a prompt, padding included
    seed: int  # of the weights

    @property
    def shape(self) -> tuple[int, int]:
        """[length, d] of one prompt's states."""
        return self.max_length, self.model.d_model

    def embed(
        self, prompts: Sequence[str], nulls: Sequence[str] = ()
    ) -> Float[np.ndarray, "n length d"]:
        """See `TextEncoder`; padding is masked inside the encoder only."""
        # Apart, so that adding nulls moves no prompt to another row: rounding depends on the row.
        return np.concatenate([self._states(prompts), self._states(nulls)])

    def _states(self, prompts: Sequence[str]) -> Float[np.ndarray, "n length d"]:
        tokens, mask = tokenize(prompts, self.max_length)
        states = [np.zeros((0, *self.shape), np.float32)]
        for first in range(0, len(prompts), BATCH_SIZE):
            # Pad the last batch: one shape compiles once.
            rows = slice(first, first + BATCH_SIZE)
            fill = ((0, BATCH_SIZE - len(tokens[rows])), (0, 0))
            batch = _encode(
                self.model, self.seed, np.pad(tokens[rows], fill), np.pad(mask[rows], fill)
            )
            states.append(np.asarray(batch)[: len(tokens[rows])])
        return np.concatenate(states)

    def null(self) -> Float[np.ndarray, "1 length d"]:
        """See `TextEncoder`: the empty prompt's, as in DeepFloyd IF."""
        return self.embed((), [""])

    def parameters(self) -> dict:
        """Shapes of the weights."""
        tokens = jnp.zeros((1, self.max_length), jnp.int32)
        with building("text.model"):
            return jax.eval_shape(self.model.init, jax.random.key(0), tokens, tokens > 0)["params"]

    @property
    def digest(self) -> str:
        """Empty: the config says everything."""
        return ""


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(model: T5Encoder, seed: int, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    # Inside jit: every call draws the weights again, and nothing has to keep them.
    variables = model.init(jax.random.key(seed), tokens[:1], mask[:1])
    return cast(jax.Array, model.apply(variables, tokens, mask))


@dataclasses.dataclass(frozen=True)
class CachedTextEncoder:
    """States that an encoder has computed before; the encoder itself is not needed."""

    cache: TextCache
    null_text: str  # 'empty': the empty prompt's states (DeepFloyd IF), 'zeros': zeros (Imagen)
    template: str  # a prompt replaces its `{}`

    @property
    def shape(self) -> tuple[int, int]:
        """[length, d] of one prompt's states."""
        return self.cache.shape

    def embed(
        self, prompts: Sequence[str], nulls: Sequence[str] = ()
    ) -> Float[np.ndarray, "n length d"]:
        """See `TextEncoder`; `InputError` if a prompt is not cached, or its states are damaged."""
        keys = text_keys(prompts, nulls, self.template, self.preprocessing, self.null_text)
        self._check(prompts, keys[: len(prompts)], self.template)
        self._check(nulls, keys[len(prompts) :], "{}")
        # A key of None leaves its row zero.
        states = np.zeros((len(keys), *self.shape), np.float32)
        rows = [row for row, key in enumerate(keys) if key is not None]
        states[rows] = self.cache.read([key for key in keys if key is not None])
        return states

    def _check(self, texts: Sequence[str], keys: Sequence[str | None], template: str) -> None:
        # Raises an error with the command that adds the missing prompts.
        pairs = zip(texts, keys, strict=True)
        missing = [text for text, key in pairs if key is not None and key not in self.cache]
        if missing:
            more = f" (nor are {len(missing) - 1} more)" if len(missing) > 1 else ""
            # Caches older than caption cleaning do not record that they were made without it.
            plain = {"--noclean_caption"} if self.preprocessing == PLAIN else set()
            made_with = [*self.cache.flags, *plain.difference(self.cache.flags)]
            flags = ["--prompts=FILE", *made_with, f"--to={self.cache.folder}"]
            flags += [f"--template={template}"] if template != "{}" else []
            raise InputError(
                f"prompt {missing[0]!r} is not in {self.cache.folder}{more}; write it to a "
                f"file and run python -m imagen_ft.text {shlex.join(flags)}"
            )

    @property
    def preprocessing(self) -> str:
        """How the cache was made: one of `captions.KINDS`."""
        return self.cache.encoder.get("preprocessing", PLAIN)

    def null(self) -> Float[np.ndarray, "1 length d"]:
        """See `TextEncoder`."""
        return self.embed((), [""])

    def parameters(self) -> dict:
        """Empty: it keeps no weights."""
        return {}

    @property
    def digest(self) -> str:
        """Checksum of the encoder that computed the states."""
        return self.cache.digest


def make_text_encoder(config: ml_collections.ConfigDict) -> TextEncoder:
    """Builds the encoder of a config's section `text`.

    Raises `InputError` if there is no such cache or weights, they are damaged, or a field has a
    wrong value.
    """
    # 1. `weights`, of T5 or CLIP (see `sources.open_source`). Optional: `dtype`, `max_length`,
    # `null` ('empty' or 'zeros'), `template`, `variant`, `clean_caption` (T5 only), and `resident`:
    # whether the encoder stays loaded.
    if "weights" in config:
        return _make_loaded(config)
    # 2. `max_length`, `seed` and `model`, fields of `T5Encoder`: fixed random weights.
    if "cache" not in config:
        check_numbers(config, {"max_length": SIDE, "seed": SEED}, "text")
        fields = module_fields(config.model, "text.model")
        model = make_module(T5Encoder, {**fields, "vocab_size": VOCABULARY}, "text.model")
        return FixedTextEncoder(model, config.max_length, config.seed)
    # 3. `cache`, a folder made by `python -m imagen_ft.text`. Optional: `null`, `template`, and
    # `shape`, [length, d] of its states, for use before the cache exists.
    null_text, template = _null_and_template(config)
    cache = TextCache(config.cache)
    if tuple(config.get("shape", cache.shape)) != cache.shape:
        raise InputError(
            f"config.text.shape must be {cache.shape}, as for the states of {cache.folder}, got "
            f"{tuple(config.shape)}"
        )
    # Guidance needs the empty prompt.
    if null_text == "empty" and "" not in cache:
        raise InputError(
            f"{cache.folder} lacks the empty prompt; run python -m imagen_ft.text again"
        )
    encoder = CachedTextEncoder(cache, null_text, template)
    if encoder.preprocessing not in KINDS:
        raise InputError(
            f"{cache.folder}: its prompts must be preprocessed in one of the ways "
            f"{', '.join(map(repr, KINDS))}, got {encoder.preprocessing!r}; make it again"
        )
    return encoder


def lacking_in_text(config: ml_collections.ConfigDict) -> Defaults:
    """Optional fields of `make_text_encoder` that the section `text` lacks."""
    if "weights" not in config and "cache" not in config:
        fields = module_fields(config.model, "text.model")
        model = make_module(T5Encoder, {**fields, "vocab_size": VOCABULARY}, "text.model")
        return below("text.model", config.model, defaults_of(model, leave_out=("vocab_size",)))
    defaults: Defaults = {"null": "empty", "template": "{}", "shape": unset(tuple)}
    if "weights" in config:
        defaults |= {"dtype": "bfloat16", "max_length": 77, "variant": unset(str)}
        defaults |= {"clean_caption": True, "resident": False}
    return below("text", config, defaults)


def _make_loaded(config: ml_collections.ConfigDict) -> LoadedTextEncoder:
    null_text, template = _null_and_template(config)
    dtype = config.get("dtype", "bfloat16")
    if dtype not in DTYPES:
        raise InputError(f"config.text.dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    # With `shape` given, T5's width is known and its config need not be read.
    given = config.weights, config.get("variant"), dtype, config.get("max_length", 77)
    source = open_source(*given, config.shape[1] if "shape" in config else 0)
    if isinstance(source, ClipSource) and tuple(config.get("shape", source.shape)) != source.shape:
        raise InputError(
            f"config.text.shape must be {source.shape}, as for the text encoders of "
            f"{config.weights}, got {tuple(config.shape)}"
        )
    preprocessing = source.preprocessing(config.get("clean_caption", True))
    resident = config.get("resident", False)
    return LoadedTextEncoder(source, null_text, template, preprocessing, resident)


def _null_and_template(config: ml_collections.ConfigDict) -> tuple[str, str]:
    null_text, template = config.get("null", "empty"), config.get("template", "{}")
    if null_text not in ("empty", "zeros"):
        raise InputError(f"config.text.null must be empty or zeros, got {null_text}")
    check_template("config.text.template", template)
    return null_text, template


def check_prompts(
    prompts: Sequence[str], class_names: Sequence[str], locations: Sequence[str] | None = None
) -> None:
    """Raises `InputError` if a prompt is not a text, or not one of `class_names`, if there are any.

    `locations` say in messages where each prompt comes from.
    """
    # A model of a closed list of classes knows nothing else.
    for row, prompt in enumerate(prompts):
        check_text(locations[row] if locations else f"prompt {row + 1}", prompt)
        if class_names and prompt not in class_names:
            location = locations[row] if locations else f"prompt {row + 1}"
            shown = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
            near = difflib.get_close_matches(prompt, class_names, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(
                f"{location}: {prompt!r} is not a class of this model{meant}; use one of {shown}"
            )


def check_text(location: str, text: Any) -> None:
    """Raises `InputError`, starting with the location, unless a prompt is text with an encoding."""
    # JSON can hold lone surrogates, which no UTF-8 file or tokenizer takes.
    if not isinstance(text, str) or not is_utf8(text):
        raise InputError(f"{location} must be a string that UTF-8 can encode, got {text!r}")


def text_shapes(config: ml_collections.ConfigDict) -> tuple[tuple[int, int], dict[str, Any]]:
    """Shape of one prompt's states; shapes of the encoder's parameters, by name.

    With `config.shape` a cache need not exist yet.
    """
    if config.get("shape") is not None:
        if len(config.shape) != 2:
            raise InputError(
                f"text.shape must be two numbers, length and width, got {config.shape}"
            )
        length, width = config.shape
        check_numbers(dict(length=length, width=width), dict(length=SIDE, width=SIDE), "text.shape")
        return (length, width), {}
    encoder = make_text_encoder(config)
    return encoder.shape, {"text_encoder": encoder.parameters()}
