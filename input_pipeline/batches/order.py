"""Which example comes where in an endless run: known from the seed and the position alone."""

import threading
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, Int64

# A batch can span two epochs, and others are read beside it.
_KEPT = 2


@runtime_checkable
class BatchPlan(Protocol):
    """What the batches of a run hold."""

    def __call__(self, k: int, rows: Int[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        """The index of the example at each of these rows of batch k."""
        ...


class Epochs:
    """An endless run over n examples: each once an epoch, every epoch in an order of its own.

    The order of an epoch is drawn when it is first asked for; 4 bytes an example are held for each
    of two epochs. Several threads may use it, and a copy that is unpickled draws again.
    """

    def __init__(self, n: int, seed: int, stream: int = 0):
        """Makes a run.

        Args:
            n: examples, at least 1.
            seed: any integer >= 0.
            stream: runs of one seed and other streams have nothing to do with each other.
        """
        self._n, self._seed, self._stream = n, seed, stream
        self._orders: dict[int, Int32[np.ndarray, " n"]] = {}
        self._lock = threading.Lock()

    def __reduce__(self):
        return Epochs, (self._n, self._seed, self._stream)

    def __call__(self, positions: Int64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        """The example at each position, counted from the beginning of the run."""
        epochs = positions // self._n
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            indices[mine] = self._order(epoch)[positions[mine] % self._n]
        return indices

    def _order(self, epoch: int) -> Int32[np.ndarray, " n"]:
        # All threads come to a new epoch at once; one draws it, which for 12M examples takes 1 s.
        with self._lock:
            order = self._orders.pop(epoch, None)
            while len(self._orders) >= _KEPT:
                del self._orders[next(iter(self._orders))]
            if order is None:
                order = np.arange(self._n, dtype=np.int32)
                np.random.default_rng((self._seed, epoch, self._stream)).shuffle(order)
            self._orders[epoch] = order  # the last one used
            return order


class Shuffled:
    """The plan in which all examples count the same; epochs run on across borders of batches."""

    def __init__(self, n: int, batch_size: int, seed: int):
        """Makes a plan.

        Args:
            n: examples, at least 1.
            batch_size: rows in a global batch.
            seed: any integer >= 0.
        """
        self._batch_size, self._epochs = batch_size, Epochs(n, seed)

    def __call__(self, k: int, rows: Int[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        """See `BatchPlan`."""
        return self._epochs(k * self._batch_size + rows)
