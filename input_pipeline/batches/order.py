"""Which example comes where in an endless run, from the seed and the position alone."""

import threading
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, Int64

# Epochs whose orders are held: a batch can span two.
_KEPT = 2


@runtime_checkable
class BatchPlan(Protocol):
    """Which examples the batches of a run hold."""

    def __call__(self, k: int, rows: Int[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        """The indices of the examples in these rows of batch k."""
        ...


class Epochs:
    """An endless run over n examples: each once per epoch, every epoch in its own order.

    Two orders are held, 4 bytes per example each. Threads may share it; unpickled copies draw
    again.
    """

    def __init__(self, n: int, seed: int, stream: int = 0):
        """Streams of the same seed are independent of each other."""
        self._n, self._seed, self._stream = n, seed, stream
        self._orders: dict[int, Int32[np.ndarray, " n"]] = {}
        self._lock = threading.Lock()

    def __reduce__(self):
        # The lock cannot be pickled, and orders would cost more to send than to draw.
        return Epochs, (self._n, self._seed, self._stream)

    def __call__(self, positions: Int64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        """The example at each position, counted from the start of the run."""
        epochs = positions // self._n
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            indices[mine] = self._order(epoch)[positions[mine] % self._n]
        return indices

    def _order(self, epoch: int) -> Int32[np.ndarray, " n"]:
        # All threads reach a new epoch at once. One draws it, which takes 1 s for 12M examples; the
        # others wait.
        with self._lock:
            # Popping and storing again keeps the most recently used last.
            order = self._orders.pop(epoch, None)
            while len(self._orders) >= _KEPT:
                del self._orders[next(iter(self._orders))]
            if order is None:
                order = np.arange(self._n, dtype=np.int32)
                np.random.default_rng((self._seed, epoch, self._stream)).shuffle(order)
            self._orders[epoch] = order  # the last one used
            return order


class Shuffled:
    """The plan in which all examples count the same; a batch may span two epochs."""

    def __init__(self, n: int, batch_size: int, seed: int):
        self._batch_size, self._epochs = batch_size, Epochs(n, seed)

    def __call__(self, k: int, rows: Int[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        """See `BatchPlan`."""
        return self._epochs(k * self._batch_size + rows)
