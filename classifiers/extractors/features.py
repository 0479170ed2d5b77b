"""Features of all images of a source, computed on all devices and kept on disk."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from classifiers.extractors.extractor import Extractor
from input_pipeline.batches.passes import each_batch
from input_pipeline.source import Source
from launch.errors import InputError
from launch.files import atomic_file, json_digest, read_sealed, sha256, write_sealed
from launch.runtime.devices.distributed import decide_on_first_process, on_first_process
from launch.runtime.devices.mesh import make_mesh, replicate
from launch.runtime.types import Array, Variables

# Version of kept arrays: raise it when numbers change their meaning.
_FORMAT = 1
# Images whose pixels go into a checksum beside the source's own: a wrapper may change images, and
# passes on the checksum of what it wraps.
_SAMPLED = 8


def features(
    extractor: Extractor,
    source: Source,
    folder: epath.PathLike,
    taps: Sequence[str] = ("features",),
    batch_size: int = 64,
    mesh: Mesh | None = None,
    digest: str | None = None,
    prepare: Callable[[], Any] = lambda: None,
    name: str = "",
) -> dict[str, np.ndarray]:
    """What an extractor sees in every image of a source, in order; every process must call it.

    Returns float32 [n, ...] by tap. Arrays are kept in `folder`, which all processes see. `digest`
    is the checksum of the images, None for `images_digest`; `prepare` is called on every process
    before images are read, if they are; `batch_size` is over all devices of `mesh`, None for all of
    this job; `name` is shown in the progress bar.

    Raises:
        InputError: see `feature_batches`; or an output is not finite.
    """
    # 1. Names of files hold a checksum of all that decides the numbers.
    folder = epath.Path(folder)
    made_from = {
        "format": _FORMAT,
        **extractor.made_from,
        "images": digest or images_digest(source),
    }
    stem = json_digest(made_from)[:32]
    paths = {tap: folder / f"{extractor.name}-{stem}-{tap}" for tap in taps}
    # 2. Read what is kept. One process looks and all follow: computing takes all of them.
    kept = decide_on_first_process(
        lambda: [tap for tap in taps if _is_kept(paths[tap], made_from | {"tap": tap})]
    )
    results = {tap: _read(paths[tap]) for tap in kept}
    # 3. Compute and keep the rest, in one pass over the images.
    missing = [tap for tap in taps if tap not in kept]
    if missing:
        prepare()
        title = f"features of {name}" if name else f"features by {extractor.name}"
        made = _compute(extractor, source, missing, batch_size, mesh, title)
        for tap, values in made.items():
            origin = made_from | {"tap": tap}
            on_first_process(functools.partial(_keep, paths[tap], values, origin))
        results |= made
    return {tap: results[tap] for tap in taps}


def kept_array(
    folder: epath.PathLike, name: str, origin: dict[str, Any], make: Callable[[], np.ndarray]
) -> np.ndarray:
    """An array that is read where it is kept, else made and kept; on every process.

    `origin` is all that it depends on, for JSON; `make` runs on all processes or on none; all see
    `folder`.
    """
    made_from = {"format": _FORMAT, **origin}
    path = epath.Path(folder) / f"{name}-{json_digest(made_from)[:32]}"
    if decide_on_first_process(lambda: _is_kept(path, made_from)):
        return _read(path)
    values = make()
    on_first_process(functools.partial(_keep, path, values, made_from))
    return values


def feature_batches(
    extractor: Extractor,
    source: Source,
    taps: Sequence[str] = ("features",),
    batch_size: int = 64,
    mesh: Mesh | None = None,
    tell: Callable[[int], Any] = lambda images: None,
) -> Iterator[dict[str, np.ndarray]]:
    """Like `features`, batch by batch, for more images than memory holds; nothing is kept.

    `tell` is called with the number of images done since its last call.

    Raises:
        InputError: the source is empty or has images of several sizes, the network cannot take
            them, or it has no such tap.
    """
    mesh = make_mesh({"data": -1}) if mesh is None else mesh
    if not len(source):
        raise InputError("the set has no images; check its source")
    _check(extractor, source, taps)

    run = _program(extractor.apply, tuple(taps))
    # Every device gets all weights once, before the first batch.
    variables = jax.tree.map(lambda leaf: replicate(mesh, np.asarray(leaf)), extractor.variables)
    step = lambda images, labels, positions: run(variables, images)  # noqa: E731
    return each_batch(step, source, batch_size, extractor.transform, mesh, tell)


@functools.lru_cache(maxsize=4)
def _program(
    apply: Callable[[Variables, Array], dict[str, Array]], taps: tuple[str, ...]
) -> Callable[[Variables, Array], dict[str, Array]]:
    """Some outputs in float32; compiled once for all sets that an extractor sees."""

    @jax.jit
    def run(variables: Variables, images: Array) -> dict[str, Array]:
        outputs = apply(variables, images)
        return {tap: outputs[tap].astype(jnp.float32) for tap in taps}

    return run


def images_digest(source: Source) -> str:
    """A SHA-256 checksum of a source's images and their order.

    Where the source has no checksum of its own it is small, and all its pixels count.
    """
    own, count = source.digest(), len(source)
    digest = hashlib.sha256(json.dumps([own, count]).encode())
    # 1. Keys, in order.
    for i in range(count):
        digest.update(source.key(i).encode() + b"\n")
    # 2. Shapes and pixels of some images, or of all.
    step = 1 if own is None else max(1, count // _SAMPLED)
    for i in range(0, count, step):
        image = source[i]["image"]
        digest.update(str(image.shape).encode() + np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def _check(extractor: Extractor, source: Source, taps: Sequence[str]) -> None:
    example = source[0]
    shape = (extractor.transform(example) if extractor.transform else example)["image"].shape
    # eval_shape traces the network: what it cannot take shows before any image is read.
    image = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
    try:
        outputs = jax.eval_shape(extractor.apply, extractor.variables, image)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"images must fit {extractor.name}, got {'x'.join(map(str, shape))} ({reason}); choose "
            "another extractor, or other images"
        ) from error
    if unknown := [tap for tap in taps if tap not in outputs]:
        raise InputError(
            f"taps must be some of {', '.join(sorted(outputs))}, got {unknown[0]!r}; "
            f"{extractor.name} has no others"
        )


def _compute(
    extractor: Extractor,
    source: Source,
    taps: Sequence[str],
    batch_size: int,
    mesh: Mesh | None,
    title: str,
) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {tap: [] for tap in taps}
    silent = jax.process_index() > 0
    with tqdm(total=len(source), unit="image", desc=title, disable=silent) as bar:
        for batch in feature_batches(extractor, source, taps, batch_size, mesh, bar.update):
            for tap, values in batch.items():
                if not np.isfinite(values).all():
                    raise InputError(
                        f"{tap} of {extractor.name} must be finite, got NaN or infinity; check "
                        "its weights"
                    )
                parts[tap].append(values)
    return {tap: np.concatenate(arrays) for tap, arrays in parts.items()}


def _files(path: epath.Path) -> tuple[epath.Path, epath.Path]:
    """The array, and what it was made from."""
    return path.with_name(f"{path.name}.npy"), path.with_name(f"{path.name}.json")


def _is_kept(path: epath.Path, made_from: dict[str, Any]) -> bool:
    """Whether the array is there, whole, and made from the same."""
    numbers, record = _files(path)
    try:
        content = read_sealed(record)
    except InputError:
        return False
    return (
        content.get("made_from") == made_from
        and numbers.exists()
        and content.get("sha256") == sha256(numbers)
    )


def _read(path: epath.Path) -> np.ndarray:
    with _files(path)[0].open("rb") as file:
        return np.load(file, allow_pickle=False)


def _keep(path: epath.Path, values: np.ndarray, made_from: dict[str, Any]) -> None:
    numbers, record = _files(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The record comes last: an array without one does not count.
    with atomic_file(numbers) as file:
        np.lib.format.write_array(file, values, allow_pickle=False)
    write_sealed(record, {"made_from": made_from, "sha256": sha256(numbers)})
