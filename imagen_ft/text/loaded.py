"""Published text encoders that are loaded to embed new prompts and then freed."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import numpy as np
from jaxtyping import Float

from imagen_ft.text.cache import digest_of
from imagen_ft.text.captions import text_keys
from imagen_ft.text.embedder import Embedder
from imagen_ft.text.sources import TextSource
from launch.runtime.devices.mesh import make_mesh

# Prompts a batch.
BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedTextEncoder:
    """An encoder with published weights, which are on the devices only while it runs.

    States stay in host memory: a prompt is embedded once.
    """

    source: TextSource
    null_text: str  # 'empty': the empty prompt's states (DeepFloyd IF), 'zeros': zeros (Imagen)
    template: str  # a prompt replaces its `{}`
    preprocessing: str  # one of `captions.KINDS`
    resident: bool = False  # stay on the devices: no loading for a new prompt
    _states: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)
    _loaded: list[Embedder] = dataclasses.field(default_factory=list, repr=False)

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """[length, d] of one prompt's states."""
        return self.source.shape

    def embed(
        self, prompts: Sequence[str], nulls: Sequence[str] = ()
    ) -> Float[np.ndarray, "n length d"]:
        """See `TextEncoder`; raises `InputError` if the weights are damaged."""
        # 1. Which texts are new. The empty one is embedded along with the first prompts: guidance
        # will ask for it, and would load the encoder again.
        keys = text_keys(prompts, nulls, self.template, self.preprocessing, self.null_text)
        empty = [] if self.null_text == "zeros" or not keys else [""]
        asked = dict.fromkeys(key for key in [*keys, *empty] if key is not None)
        missing = [key for key in asked if key not in self._states]
        # 2. Embed them.
        if missing:
            with self._embedder() as embedder:
                batches = embedder.embed(missing, BATCH_SIZE)
                states = np.concatenate([batch.astype(np.float32) for batch in batches])
            self._states.update(zip(missing, states, strict=True))
        # 3. Collect the rows; a key of None stands for zeros.
        zeros = np.zeros(self.shape, np.float32)
        rows = [zeros if key is None else self._states[key] for key in keys]
        return np.stack(rows) if rows else np.zeros((0, *self.shape), np.float32)

    def null(self) -> Float[np.ndarray, "1 length d"]:
        """See `TextEncoder`."""
        return self.embed((), [""])

    def parameters(self) -> dict:
        """Empty: no weights stay."""
        return {}

    @functools.cached_property
    def digest(self) -> str:
        """Checksum of all that decides the states; equal to that of a cache filled by it."""
        return digest_of(self.source.identity(self.preprocessing))

    @contextmanager
    def _embedder(self) -> Iterator[Embedder]:
        # Loads the encoder onto all devices, and frees it afterwards unless it is resident.
        if not self._loaded:
            self._loaded.append(self.source.load(make_mesh({"fsdp": -1})))
        try:
            yield self._loaded[0]
        finally:
            if not self.resident:
                params = self._loaded.pop().params
                # Free now, not at Python's leisure: the next model to load needs the memory.
                jax.tree.map(lambda array: array.delete(), params)
