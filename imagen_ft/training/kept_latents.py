"""Latents of the training images, computed once and kept on disk.

What the auto-encoder says of an image is kept, mean and log-variance in float16; where images are
flipped also of the mirrored image, whose latent is not the mirrored latent. Training still draws
new latents from both at every step.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float, Float16
from tqdm import tqdm

from imagen_ft.cascade.autoencoder import load_autoencoder
from imagen_ft.models.autoencoder import Autoencoder, encode_one_by_one
from imagen_ft.training.image_losses import MOMENTS
from imagen_ft.training.latents import latents_of
from imagen_ft.training.training import Training
from input_pipeline.batches import loader
from input_pipeline.source import Example, Source, Subset, Transform, Wrapper
from launch.cli import say
from launch.errors import InputError
from launch.files import remove_temporaries
from launch.runtime.checkpoints.row_cache import RowCache
from launch.runtime.devices.distributed import (
    agree,
    decide_on_first_process,
    on_first_process,
)
from launch.runtime.devices.mesh import (
    batch_sharding,
    fetch_behind,
    make_mesh,
    put_batch,
)
from launch.runtime.images import to_float
from launch.runtime.locks import lock
from launch.runtime.types import Array, Variables

# Bytes per part of a cache; an interruption loses one part at most.
PART_BYTES = 2**26
_BATCH = 16  # images per device that are read together; they are encoded one by one
_FIELD = "config.latents.cache"
_DTYPE = "float16"


class LatentCache(RowCache):
    """Moments of images, [flips, h, w, 2 z] each: the image's, then the mirrored image's."""

    HEAD = "latents.json"
    MADE_FROM, NAMES, ARRAY = "latents", "images", MOMENTS
    LACKING = "has no latents"
    OF_ANOTHER = "other latents"
    MEND = "run the same command again"


class KeptLatents(Wrapper):
    """A source with the kept latents of its images as `MOMENTS`; no image is decoded."""

    def __init__(self, source: Source, cache: LatentCache):
        """Makes the source; the cache must hold all of its images."""
        super().__init__(source)
        keys = (source.key(i) for i in range(len(source)))
        # Not the cache itself: its names would be copied into every worker process.
        self._parts, self._places = cache.parts, cache.places(keys)

    def __getitem__(self, i: SupportsIndex) -> Example:
        i = int(i)
        (moments,) = self._parts.read(self._places[i : i + 1], [self.key(i)])
        return {MOMENTS: moments, "label": self.labels[i], "domain": self.domain[i]}


def pick_flip(example: Example, rng: np.random.Generator) -> Example:
    """The image's moments or the mirrored image's, whichever `random_flip` would take."""
    moments = example[MOMENTS]
    mirrored = len(moments) > 1 and rng.random() >= 0.5
    return {**example, MOMENTS: moments[int(mirrored)]}


@dataclasses.dataclass(frozen=True)
class Keeping:
    """A cache that was looked at, and what it lacks."""

    folder: epath.Path
    made_from: dict[str, Any]  # see `RowCache`
    source: Source
    transform: Transform  # brings an image to size
    missing: list[int]  # numbers of the images it lacks
    flips: int  # rows per image: 2 where it is also mirrored
    latents: tuple[int, int, int]  # height, width and channels of a latent

    def fill(self, training: Training) -> Source:
        """Encodes what is missing and returns the images as they are kept.

        All processes must call it; each encodes its share.

        Raises:
            InputError: another process is at work there, latents are not finite or beyond float16,
                or the hosts do not see the same folder.
        """
        # 1. The first process claims the folder.
        shape = self.flips, *self.latents[:2], 2 * self.latents[2]

        def claim() -> None:
            lock(self.folder)
            remove_temporaries(self.folder)
            if not (self.folder / LatentCache.HEAD).exists():
                LatentCache.begin(self.folder, self.made_from, shape)

        if self.missing:
            on_first_process(claim)
            # 2. Every process encodes its share, on its own devices.
            config, model = training.config, training.denoiser.autoencoder
            assert model is not None, "images have no latents"
            mesh = make_mesh({}, jax.local_devices())
            run, stage = config.init_from, config.stage
            variables, _ = load_autoencoder(stage, model, run, "config", mesh)
            cache = LatentCache(self.folder)
            if jax.process_index() == 0:
                total = len(self.source) * cache.row_bytes / 1e9
                say(
                    f"latents: {len(self.missing)} of {len(self.source)} images to encode; "
                    f"{self.folder} will hold {total:.3g} GB of them"
                )
            encode = jax.tree_util.Partial(functools.partial(_encode, model), variables)
            # 3. Wait: nobody reads before all have written.
            agree(lambda: self._encode(encode, cache, mesh))
        # 4. Read it back: a folder that is local to each host has only that host's share.
        cache = LatentCache(self.folder)
        for i in self.missing:
            if self.source.key(i) not in cache:
                raise InputError(
                    f"{_FIELD} must be a folder that all hosts see, but {self.folder} lacks image "
                    f"{self.source.key(i)}; choose one"
                )
        return KeptLatents(self.source, cache)

    def _encode(self, encode: Callable[[Array], Array], cache: LatentCache, mesh: Mesh) -> None:
        """Adds this process's share of what is missing, part by part."""
        number, count = jax.process_index(), jax.process_count()
        cache.take_turns(number, count)
        # Every count-th missing image, from this process's number.
        images = Subset(self.source, np.array(self.missing[number::count], np.int64))
        part_rows = max(1, PART_BYTES // cache.row_bytes)
        names: list[str] = []
        ready: list[Float16[np.ndarray, "flips h w z2"]] = []
        with tqdm(total=len(images), desc="encode", unit="image") as bar:
            for moments in self._moments(encode, images, mesh):
                names.append(images.key(bar.n))
                ready.append(_checked(moments, names[-1]))
                bar.update()
                if len(ready) == part_rows or bar.n == len(images):
                    cache.append(names, np.stack(ready))
                    names, ready = [], []

    def _moments(
        self, encode: Callable[[Array], Array], images: Source, mesh: Mesh
    ) -> Iterator[Float[np.ndarray, "flips h w z2"]]:
        """Moments of each image, in order."""

        @functools.partial(jax.jit, out_shardings=batch_sharding(mesh))
        def with_flips(encode: Callable[[Array], Array], images: Array) -> Array:
            # Mirrored along the width; [b, flips, h, w, 2 z].
            both = [images, images[:, :, ::-1]][: self.flips]
            return jnp.stack([encode(to_float(one)) for one in both], axis=1)

        def batches() -> Iterator[tuple[Array, Array]]:
            if len(images):
                for batch in loader.eval_batches(images, _BATCH * mesh.size, self.transform):
                    placed = put_batch(mesh, {name: batch[name] for name in ("image", "mask")})
                    yield with_flips(encode, placed["image"]), placed["mask"]

        with jax.set_mesh(mesh):
            for found, mask in fetch_behind(batches()):
                yield from np.asarray(found)[np.asarray(mask)]


def _encode(
    model: Autoencoder, variables: Variables, images: Float[Array, "b h w c"]
) -> Float[Array, "b h2 w2 z2"]:
    """Mean and log-variance, joined along the channels."""
    return jnp.concatenate(encode_one_by_one(model, variables, images), axis=-1)


def look(training: Training, source: Source, transform: Transform, digest: str) -> Keeping | None:
    """What `config.latents.cache` has of a source, and lacks; None where nothing is kept.

    Nothing is written, and no weights are read. `digest` is the checksum of the auto-encoder's
    weights.

    Raises:
        InputError: the folder holds something else, or other latents.
    """
    config, model = training.config, training.denoiser.autoencoder
    path = latents_of(config)["cache"]
    if not path or model is None:
        return None
    folder = epath.Path(path)
    # Whatever changes a latent: a cache made from anything else is refused.
    made_from = {
        "dtype": _DTYPE,
        "autoencoder": digest,
        "computed_in": model.computed_in.name,
        "scaling_factor": model.scaling_factor,
        "shift_factor": model.shift_factor,
        "images": source.digest() or config.train_source.name,
        "size": training.image_size,
        "flip": bool(config.get("flip", False)),
    }

    def missing() -> list[int]:
        if not _is_begun(folder):
            return list(range(len(source)))
        cache = LatentCache(folder)
        cache.check_made_from(made_from)
        return [i for i in range(len(source)) if source.key(i) not in cache]

    flips = 2 if made_from["flip"] else 1
    size, channels = training.denoiser.size, training.denoiser.channels
    # One process looks and tells the others: their views of a shared folder may lag.
    lacks = decide_on_first_process(missing)
    return Keeping(folder, made_from, source, transform, lacks, flips, (size, size, channels))


def _is_begun(folder: epath.Path) -> bool:
    if (folder / LatentCache.HEAD).exists():
        return True
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{_FIELD} must be a folder, got the file {folder}; choose a folder")
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"{_FIELD}={folder} has other files in it; choose another folder")
    return False


def _checked(
    moments: Float[np.ndarray, "flips h w z2"], name: str
) -> Float16[np.ndarray, "flips h w z2"]:
    with np.errstate(over="ignore"):  # looked for below
        kept = moments.astype(_DTYPE)
    if not np.isfinite(kept).all():
        raise InputError(
            f"config.stage.autoencoder.dtype must keep latents finite, but those of image {name} "
            f"are not, as {_DTYPE}; set float32, or check the weights"
        )
    return kept
