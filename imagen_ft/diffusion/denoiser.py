"""A network together with the conventions it is trained and sampled with."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key, PyTree

from imagen_ft.diffusion.forward_process import Image, add_noise
from imagen_ft.diffusion.schedule import Schedule
from imagen_ft.models.autoencoder import Autoencoder, decode_one_by_one
from imagen_ft.models.latent_unet import Added
from launch.runtime.limits import building
from launch.runtime.types import Array, Variables

UPSAMPLING = ("bilinear", "bilinear_corners", "nearest")


@runtime_checkable
class Network(Protocol):
    """What a denoiser needs from a model; `UNet`, `EfficientUNet` and `LatentUNet` have it."""

    dtype: Any  # of the computation

    def init(self, key: Any, /, *args: Any) -> Any:
        """Variables, from a key, x, t, text, and the noise level or `Added`."""

    def apply(self, variables: Any, /, *args: Any, method: str | None = None) -> Any:
        """Calls the network, or its methods `context` and `denoise`."""


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """One stage's network with the conventions it is trained and sampled with."""

    model: Network
    # Of the noise on images, and of that on low-resolution conditions.
    schedule: Schedule
    # Pixels each way, and channels, of what the network sees: images, or latents.
    size: int
    low_size: int  # pixels of the low-resolution images; 0 for a base
    channels: int
    upsampling: str = "bilinear"  # of low-resolution images, one of `UPSAMPLING`
    # Whether the network outputs channels for the variance after those of `prediction`.
    learned_variance: bool = False
    # What the first `channels` outputs are, one of `forward_process.PREDICTIONS`.
    prediction: str = "eps"
    autoencoder: Autoencoder | None = None  # None: the network sees images
    # Width of SDXL's pooled text (`Added`), which comes as one more row after the states, padded
    # with zeros; 0 if there is none.
    pooled_width: int = 0
    # Of `Added`; () means an original and an image of `image_size`, uncropped.
    sizes: tuple[int, ...] = ()

    @property
    def image_size(self) -> int:
        """Pixels each way of the images that come out."""
        return self.size * (self.autoencoder.factor if self.autoencoder else 1)

    @property
    def image_channels(self) -> int:
        """Channels of the images that come out."""
        return self.autoencoder.out_channels if self.autoencoder else self.channels

    def init(self, key: Key[Array, ""], text: Float[Array, "n d"]) -> dict[str, Any]:
        """New variables of the network, no auto-encoder's; `text` is any prompt's states."""
        # A super-resolution network sees x_t and the upsampled image, joined along the channels.
        channels = self.channels * (2 if self.low_size else 1)
        x = jnp.zeros((1, self.size, self.size, channels))
        level = jnp.zeros((1,)) if self.low_size else None
        return self.model.init(key, x, jnp.zeros((1,)), *self._told(text[None], level))

    def shapes(self, text_shape: tuple[int, int]) -> dict[str, Any]:
        """Shapes of the variables; raises InputError if the network's fields do not fit."""
        with building("stage.unet"):
            text = jax.ShapeDtypeStruct(text_shape, jnp.float32)
            return jax.eval_shape(self.init, jax.random.key(0), text)

    def autoencoder_shapes(self) -> dict[str, Any]:
        """Shapes of the auto-encoder's variables; raises InputError as `shapes` does."""
        assert self.autoencoder is not None, "the network sees images"
        # The smallest image that leaves one latent pixel: weights do not depend on the size.
        side = self.autoencoder.factor
        with building("stage.autoencoder"):
            image = jax.ShapeDtypeStruct((1, side, side, self.image_channels), jnp.float32)
            return jax.eval_shape(self.autoencoder.init, jax.random.key(0), image)

    def encode(
        self, variables: Variables, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b size size z"], Float[Array, "b size size z"] | None]:
        """Mean and log-variance of latents; without an auto-encoder the images and None."""
        if self.autoencoder is None:
            return images, None
        return self.autoencoder.apply(variables, images, method="encode")  # type: ignore[return-value]

    def decode(
        self, variables: Variables, x0: Float[Array, "b size size z"]
    ) -> Float[Array, "b h w c"]:
        """Images, about in [-1, 1], from clean latents, one by one; images pass through."""
        return decode_one_by_one(self.autoencoder, variables, x0) if self.autoencoder else x0

    def condition(
        self,
        low: Float[Array, "b low_size low_size c"],
        noise: Float[Array, "b size size c"],
        level: Float[Array, " b"],
    ) -> Float[Array, "b size size c"]:
        """Upsamples low-resolution images in [-1, 1] and noises them to a level in [0, 1].

        Noise-conditioning augmentation (Ho et al. 2021; Imagen, section 2.4); level 0 adds nothing.
        """
        upsampled = upsample(low, self.size, self.upsampling)
        noised = add_noise(upsampled, noise, self.schedule.logsnr(level))
        # Even at t = 0 a schedule has a little noise: level 0 means none at all.
        return jnp.where(level[:, None, None, None] > 0, noised, upsampled)

    def context(
        self,
        variables: Variables,
        text: Float[Array, "b n d"],
        level: Float[Array, " b"] | None = None,
    ) -> PyTree:
        """What the network computes from the prompts (and the condition's level) for all times."""
        level = None if level is None else self.schedule.model_time(level)
        return self.model.apply(variables, *self._told(text, level), method="context")

    def _told(
        self, text: Float[Array, "b n d"], level: Float[Array, " b"] | None
    ) -> tuple[Array, Any]:
        """The text's states, and what the network takes after them: noise level or `Added`."""
        if not self.pooled_width:
            return text, level
        side = self.image_size
        # SDXL's micro-conditioning: height and width of the original, top and left of the crop,
        # height and width of the image.
        sizes = jnp.asarray(self.sizes or (side, side, 0, 0, side, side), jnp.float32)
        pooled = text[:, -1, : self.pooled_width]
        return text[:, :-1], Added(pooled, jnp.broadcast_to(sizes, (len(text), len(sizes))))

    def predict(
        self,
        variables: Variables,
        x_t: Image,
        t: Float[Array, " b"],
        context: PyTree,
        condition: Image | None = None,
    ) -> Float[Array, "b h w out"]:
        """The network's output at t in [0, 1]: `prediction` and, if learned, the variance after it.

        `context` and `condition` are the results of the methods of these names.
        """
        x = x_t if condition is None else jnp.concatenate([x_t, condition], axis=-1)
        time = self.schedule.model_time(t)
        return self.model.apply(variables, x, time, context, method="denoise")


def upsample(
    images: Float[Array, "b h w c"], size: int, method: str
) -> Float[Array, "b size size c"]:
    """Enlarges square images to `size` pixels.

    'bilinear' interpolates between pixel centres, 'bilinear_corners' aligns the outer pixels
    (align_corners in PyTorch, DeepFloyd IF), 'nearest' repeats pixels.
    """
    if method != "bilinear_corners":
        shape = (images.shape[0], size, size, images.shape[-1])
        return jax.image.resize(images, shape, method, antialias=False)
    low = images.shape[1]
    # Output pixel i lies at i (low - 1) / (size - 1): both ends on the outer pixels. `weights` is
    # [size, low], two neighbours per row.
    position = np.arange(size) * ((low - 1) / max(size - 1, 1))
    weights = np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(low))).astype(np.float32)
    # [size, low] x [size, low] x [b, low, low, c] -> [b, size, size, c]. On a TPU the default
    # precision would round the pixels to bfloat16.
    return jnp.einsum("yh,xw,bhwc->byxc", weights, weights, images, precision="highest")
