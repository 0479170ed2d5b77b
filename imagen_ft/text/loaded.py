"""Published text encoders themselves: loaded for prompts they have not seen, then let go again."""

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

# Prompts that are embedded at a time.
BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedTextEncoder:
    """An encoder with published weights, which stay on the devices only while it runs.

    Its states stay in memory, so a prompt is embedded once; the states that stand for no text are
    made with the first ones.

    Attributes:
        source: of the weights.
        null_text: 'empty' is the empty prompt's states (DeepFloyd IF), 'zeros' is zeros (Imagen).
        template: what a prompt is put into, in place of `{}`.
        preprocessing: of the texts, one of `captions.KINDS`.
        resident: whether it stays on the devices, which saves loading it for every new prompt.
    """

    source: TextSource
    null_text: str
    template: str
    preprocessing: str
    resident: bool = False
    _states: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)
    _loaded: list[Embedder] = dataclasses.field(default_factory=list, repr=False)

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """[length, d] of one prompt's states."""
        return self.source.shape

    def embed(
        self, prompts: Sequence[str], nulls: Sequence[str] = ()
    ) -> Float[np.ndarray, "n length d"]:
        """States of the prompts, then of the texts that stand for no text; see `TextEncoder`.

        Raises:
            InputError: the weights are damaged.
        """
        keys = text_keys(prompts, nulls, self.template, self.preprocessing, self.null_text)
        empty = [] if self.null_text == "zeros" or not keys else [""]
        asked = dict.fromkeys(key for key in [*keys, *empty] if key is not None)
        missing = [key for key in asked if key not in self._states]
        if missing:
            with self._embedder() as embedder:
                batches = embedder.embed(missing, BATCH_SIZE)
                states = np.concatenate([batch.astype(np.float32) for batch in batches])
            self._states.update(zip(missing, states, strict=True))
        zeros = np.zeros(self.shape, np.float32)
        rows = [zeros if key is None else self._states[key] for key in keys]
        return np.stack(rows) if rows else np.zeros((0, *self.shape), np.float32)

    def null(self) -> Float[np.ndarray, "1 length d"]:
        """The states that stand for no text."""
        return self.embed((), [""])

    def parameters(self) -> dict:
        """None that stay."""
        return {}

    @functools.cached_property
    def digest(self) -> str:
        """Of all that decides about the states; that of a cache that it would fill."""
        return digest_of(self.source.identity(self.preprocessing))

    @contextmanager
    def _embedder(self) -> Iterator[Embedder]:
        """The encoder on all devices, and afterwards off them, unless it is to stay."""
        if not self._loaded:
            self._loaded.append(self.source.load(make_mesh({"fsdp": -1})))
        try:
            yield self._loaded[0]
        finally:
            if not self.resident:
                params = self._loaded.pop().params
                # Not when Python comes to it: the next to be loaded needs the room.
                jax.tree.map(lambda array: array.delete(), params)
