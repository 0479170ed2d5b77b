"""Features of all images of a source, on all devices; kept on disk, so that nobody waits twice."""

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

# Of what is kept: to be raised when numbers change their meaning.
_FORMAT = 1
# Images whose pixels a digest looks at, where the source has a digest of its own: what is in front
# of a source may change its images, and says nothing of it.
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
    """What an extractor sees in every image of a source, in order; all processes have to call it.

    Args:
        extractor: the network.
        source: the images.
        folder: where results are kept, and taken from if they are there; all processes see it.
        taps: which of the extractor's outputs.
        batch_size: images at a time, over all devices.
        mesh: whose devices share the batches; None is all of this job.
        digest: what decides about the images; None is that of `images_digest`.
        prepare: is called on every process before images are read, if they have to be.
        name: of the images, for the progress bar; '' is the extractor's.

    Returns:
        By tap float32 [n, ...], on every process.

    Raises:
        InputError: see `feature_batches`; or an output is not finite.
    """
    folder = epath.Path(folder)
    made_from = {
        "format": _FORMAT,
        **extractor.made_from,
        "images": digest or images_digest(source),
    }
    stem = json_digest(made_from)[:32]
    paths = {tap: folder / f"{extractor.name}-{stem}-{tap}" for tap in taps}
    kept = decide_on_first_process(
        lambda: [tap for tap in taps if _is_kept(paths[tap], made_from | {"tap": tap})]
    )
    results = {tap: _read(paths[tap]) for tap in kept}
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
    """An array that is kept: read where it is there, else made and kept; on every process.

    Args:
        folder: where; all processes see it.
        name: of the files, before what tells them from others of that name.
        origin: all that it depends on, for JSON.
        make: makes it; is called on all processes or on none.
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
    """As `features` batch by batch, for more images than memory holds; nothing is kept.

    Args:
        extractor: the network.
        source: the images.
        taps: which of the extractor's outputs.
        batch_size: images at a time, over all devices.
        mesh: whose devices share the batches; None is all of this job.
        tell: is told how many images have been done.

    Raises:
        InputError: the source is empty or has images of several sizes, the network cannot take
            them, or it has no such tap.
    """
    mesh = make_mesh({"data": -1}) if mesh is None else mesh
    if not len(source):
        raise InputError("the set has no images; check its source")
    _check(extractor, source, taps)

    run = _program(extractor.apply, tuple(taps))
    variables = jax.tree.map(lambda leaf: replicate(mesh, np.asarray(leaf)), extractor.variables)
    step = lambda images, labels, positions: run(variables, images)  # noqa: E731
    return each_batch(step, source, batch_size, extractor.transform, mesh, tell)


@functools.lru_cache(maxsize=4)
def _program(
    apply: Callable[[Variables, Array], dict[str, Array]], taps: tuple[str, ...]
) -> Callable[[Variables, Array], dict[str, Array]]:
    """Some outputs in float32; compiled once for all sets that an extractor looks at."""

    @jax.jit
    def run(variables: Variables, images: Array) -> dict[str, Array]:
        outputs = apply(variables, images)
        return {tap: outputs[tap].astype(jnp.float32) for tap in taps}

    return run


def images_digest(source: Source) -> str:
    """What decides about a source's images and their order, as SHA-256.

    A source without a digest of its own is one that is small: all its pixels are looked at.
    """
    own, count = source.digest(), len(source)
    digest = hashlib.sha256(json.dumps([own, count]).encode())
    for i in range(count):
        digest.update(source.key(i).encode() + b"\n")
    step = 1 if own is None else max(1, count // _SAMPLED)
    for i in range(0, count, step):
        image = source[i]["image"]
        digest.update(str(image.shape).encode() + np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def _check(extractor: Extractor, source: Source, taps: Sequence[str]) -> None:
    """Looks whether the network takes the first image, and has the taps."""
    example = source[0]
    shape = (extractor.transform(example) if extractor.transform else example)["image"].shape
    image = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
    try:
        outputs = jax.eval_shape(extractor.apply, extractor.variables, image)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"images must be such as {extractor.name} takes, got {'x'.join(map(str, shape))} "
            f"({reason}); choose another extractor, or other images"
        ) from error
    if unknown := [tap for tap in taps if tap not in outputs]:
        raise InputError(
            f"taps must be of {', '.join(sorted(outputs))}, got {unknown[0]!r}; "
            f"{extractor.name} has no other"
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
    """The numbers, and what they were made from."""
    return path.with_name(f"{path.name}.npy"), path.with_name(f"{path.name}.json")


def _is_kept(path: epath.Path, made_from: dict[str, Any]) -> bool:
    """Whether the numbers are there, whole and of this origin."""
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
    with atomic_file(numbers) as file:
        np.lib.format.write_array(file, values, allow_pickle=False)
    write_sealed(record, {"made_from": made_from, "sha256": sha256(numbers)})
