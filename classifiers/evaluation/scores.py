"""What a classifier predicts for every image, and the numbers that sum it up."""

from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from classifiers.evaluation.label_maps import NO_LABEL, LabelMap
from input_pipeline.augment.policy import Transform
from input_pipeline.batches.passes import over_batches
from input_pipeline.source import Source
from launch.runtime.images import to_float
from launch.runtime.types import Array, Variables

# By name, [n]: one entry per image.
Scores = dict[str, np.ndarray]
# From variables, images in [-1, 1] and labels to `judge`.
Judge = Callable[
    [Variables, Float[Array, "b h w c"], Int[Array, " b"]], dict[str, Float[Array, " b"]]
]
_TOP_K = 5


@runtime_checkable
class Network(Protocol):
    """What is needed of a classifier."""

    def apply(self, variables: Any, *args: Any) -> Any:
        """Logits [b, classes] of images [b, h, w, c] in [-1, 1]."""
        ...


def judge(
    logits: Float[Array, "b model_classes"], labels: Int[Array, " b"], label_map: LabelMap
) -> dict[str, Array]:
    """Compares logits of all of a model's classes, which must be finite, with labels of the set.

    Returns, each [b]: `predicted`, the label of the most probable class or NO_LABEL; `top5`,
    whether one of the five most probable classes means the label; `loss`, minus the logarithm of
    the label's probability; `confidence`, the probability of the prediction.
    """
    competing, answers = label_map.competing[None], jnp.asarray(label_map.answers)
    # 1. The softmax is over competing classes only.
    logits = jnp.where(competing, logits.astype(jnp.float32), -jnp.inf)
    log_p = jax.nn.log_softmax(logits)
    # 2. Fewer than five may compete, and then the top five are all of them.
    top = jax.lax.top_k(logits, min(_TOP_K, int(label_map.competing.sum())))[1]
    first = jnp.argmax(logits, axis=1)
    predicted = answers[first]
    # 3. A label that several of the model's classes mean has the sum of their probabilities.
    own = answers[None] == labels[:, None]
    # A class that means no label of the set has its own probability.
    itself = jnp.arange(len(answers))[None] == first[:, None]
    same = jnp.where(predicted[:, None] == NO_LABEL, itself, answers[None] == predicted[:, None])
    return {
        "predicted": predicted,
        "top5": (answers[top] == labels[:, None]).any(axis=1),
        "loss": -jax.nn.logsumexp(log_p, axis=1, where=own),
        "confidence": jnp.exp(jax.nn.logsumexp(log_p, axis=1, where=same & competing)),
    }


def make_judge(model: Network, label_map: LabelMap) -> Judge:
    """`judge` of a model's logits, as a function of its variables."""

    def of_images(variables: Variables, images: Array, labels: Array) -> dict[str, Array]:
        logits = cast(Array, model.apply(variables, images))
        return judge(logits, labels, label_map)

    return of_images


def make_score(
    model: Network,
    source: Source,
    label_map: LabelMap,
    batch_size: int,
    transform: Transform | None = None,
    mesh: Mesh | None = None,
    tell: Callable[[int], Any] = lambda images: None,
) -> Callable[[Variables], Scores]:
    """A function from variables to the `judge` of every image of a source, in order.

    `mesh` and `transform` are as of `over_batches`; `tell` is called with the number of images done
    since its last call.
    """
    of_images = make_judge(model, label_map)

    @jax.jit
    def step(variables: Variables, images: Array, labels: Array) -> dict[str, Array]:
        return of_images(variables, to_float(images), labels)

    def score(variables: Variables) -> Scores:
        at = lambda images, labels, _: step(variables, images, labels)  # noqa: E731
        return over_batches(at, source, batch_size, transform, mesh, tell)

    return score


def summarise(
    scores: Scores, labels: Int[np.ndarray, " n"], num_classes: int, bins: int
) -> dict[str, Any]:
    """The numbers that sum up `judge` of a set, for JSON.

    accuracy, top5 and loss (in nats) are means over images; per_class is [num_classes], None for
    classes without images; calibration_error and calibration are those of `calibration`.
    """
    correct = scores["predicted"] == labels
    return {
        "accuracy": float(correct.mean()),
        "top5": float(scores["top5"].mean()),
        "loss": float(scores["loss"].mean(dtype=np.float64)),  # float32 sums of 50,000 lose digits
        "per_class": per_class(correct, labels, num_classes),
        **calibration(scores["confidence"], correct, bins),
    }


def per_class(
    correct: np.ndarray, labels: Int[np.ndarray, " n"], num_classes: int
) -> list[float | None]:
    """Mean of `correct` over the images of each class; None for a class without any."""
    count = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels, weights=correct, minlength=num_classes)
    return [float(r / n) if n else None for r, n in zip(right, count, strict=True)]


def calibration(
    confidence: Float[np.ndarray, " n"], correct: np.ndarray, bins: int
) -> dict[str, Any]:
    """The expected calibration error (Guo et al. 2017, Eq. 3), in [0, 1].

    Returns `calibration_error`, the mean over images of |accuracy - confidence| of their bin, and
    `calibration`, the bins' `count` and sums of `confidence` and `correct` over their images.
    """
    confidence = confidence.astype(np.float64)
    # Bins of equal width over [0, 1]; each holds its upper end, and the first also 0.
    bin_index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    sums = {
        "count": np.bincount(bin_index, minlength=bins),
        "confidence": np.bincount(bin_index, weights=confidence, minlength=bins),
        "correct": np.bincount(bin_index, weights=correct, minlength=bins),
    }
    # Eq. 3 weighs bins by their images: counts cancel, and sums remain.
    error = np.abs(sums["correct"] - sums["confidence"]).sum() / len(confidence)
    named = {name: values.tolist() for name, values in sums.items()}
    return {"calibration_error": float(error), "calibration": named}
