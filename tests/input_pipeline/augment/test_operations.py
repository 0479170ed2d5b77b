"""The operations of RandAugment one by one against Pillow's."""

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

from input_pipeline.augment import geometry, pixels
from tests.input_pipeline.augment.photographs import photograph

GREY = 128
FACTORS = (0.1, 0.37, 0.5, 0.95, 1.0, 1.05, 1.63, 1.9, 2.8)


def low_contrast(channels=3):
    return (photograph(40, 50, channels) // 4 + np.arange(channels) * 20 + 30).astype(np.uint8)


IMAGES = {
    "photograph": photograph(97, 130),
    "grey": photograph(97, 130, channels=1),
    "low contrast": low_contrast(),
    "one colour": np.full((8, 9, 3), (3, 100, 255), np.uint8),
    "some pixels": photograph(3, 2),
    "one pixel": np.full((1, 1, 1), 77, np.uint8),
}


def to_pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def difference(ours, theirs):
    """Per value; both of one shape and kind."""
    assert ours.dtype == np.uint8
    return np.abs(ours.astype(int) - np.asarray(theirs).reshape(ours.shape))


@pytest.fixture(params=IMAGES)
def image(request):
    image = IMAGES[request.param]
    before = image.copy()
    yield image
    np.testing.assert_array_equal(image, before)


def solarize_add(image, amount):
    """Pillow has none of its own."""
    table = [min(255, v + amount) if v < 128 else v for v in range(256)]
    return image.point(table * len(image.getbands()))


EXACT = {
    "invert": (pixels.invert, ImageOps.invert, [()]),
    "autocontrast": (pixels.autocontrast, ImageOps.autocontrast, [()]),
    "equalize": (pixels.equalize, ImageOps.equalize, [()]),
    "posterize": (pixels.posterize, ImageOps.posterize, [(bits,) for bits in range(1, 9)]),
    "solarize": (pixels.solarize, ImageOps.solarize, [(t,) for t in (0, 1, 77, 128, 255, 256)]),
    "solarize_add": (pixels.solarize_add, solarize_add, [(a,) for a in (0, 33, 110, 165)]),
    "brightness": (
        pixels.brightness,
        lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
        [(factor,) for factor in (0.0, *FACTORS)],
    ),
    "sharpness": (
        pixels.sharpness,
        lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
        [(factor,) for factor in FACTORS],
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_equal_to_pillow(name, image):
    ours, theirs, arguments = EXACT[name]
    for given in arguments:
        assert difference(ours(image, *given), theirs(to_pillow(image), *given)).max() == 0


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ["Contrast", "Color"])
def test_of_the_mean_and_of_grey(name, factor, image):
    """Luma in 15 bits, not 16, is another one in 1 of 10,000 pixels; a factor multiplies that."""
    ours = {"Contrast": pixels.contrast, "Color": pixels.saturation}[name](image, factor)
    found = difference(ours, getattr(ImageEnhance, name)(to_pillow(image)).enhance(factor))
    assert found.max() <= math.ceil(abs(1 - factor)) and (found > 0).mean() < 0.001


def test_posterize_to_nothing():
    assert not pixels.posterize(IMAGES["photograph"], 0).any()


def test_solarize_from_below_the_range(image):
    np.testing.assert_array_equal(pixels.solarize(image, -40), 255 - image)


def test_greyscale(image):
    found = pixels.greyscale(image)
    luma = to_pillow(image).convert("L").convert("L" if image.shape[2] == 1 else "RGB")
    assert difference(found, luma).max() <= 1
    assert found is not image and (found == found[..., :1]).all()


@pytest.mark.parametrize("sigma", [0.1, 0.6, 1.0, 2.0])
def test_blur_is_gaussian(sigma):
    for image in (IMAGES["photograph"], IMAGES["grey"]):
        exact = gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="mirror", truncate=3.5)
        found = pixels.blur(image, sigma)
        assert found.shape == image.shape and found.dtype == np.uint8
        assert np.abs(found - exact).max() < 1.5


def inside(shape, matrix):
    """Where the image is looked up: 1 within it, 0 beyond it, -1 on its outermost half pixel."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    a, b, c, d, e, f = matrix
    distances = []
    for at, length in ((a * x + b * y + c, shape[1]), (d * x + e * y + f, shape[0])):
        distances.append(np.minimum(at, length - at))
    nearest = np.minimum(*distances)
    return np.where(nearest >= 0.501, 1, np.where(nearest <= -0.501, 0, -1))


def turned(shape, degrees):
    """Independent of the code under test: to the centre, the turn, and back, as matrices."""
    y, x = shape[0] / 2, shape[1] / 2
    angle = math.radians(degrees)
    turn = [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]
    there, back = np.eye(3), np.eye(3)
    there[:2, 2], back[:2, 2] = (-x, -y), (x, y)
    return (back @ np.array([*turn, [0, 0, 1]]) @ there)[:2].ravel()


MOVES = {
    "shear_x": (geometry.shear_x, lambda shape, v: (1, v, 0, 0, 1, 0), (-0.3, 0.07, 0.45)),
    "shear_y": (geometry.shear_y, lambda shape, v: (1, 0, 0, v, 1, 0), (-0.3, 0.07, 0.45)),
    "translate_x": (
        geometry.translate_x,
        lambda shape, v: (1, 0, v * shape[1], 0, 1, 0),
        (-0.45, 0.1, 0.675),
    ),
    "translate_y": (
        geometry.translate_y,
        lambda shape, v: (1, 0, 0, 0, 1, v * shape[0]),
        (-0.45, 0.1, 0.675),
    ),
    "rotate": (geometry.rotate, turned, (-30.0, 3.3, 45.0)),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("kind", ["photograph", "grey", "low contrast"])
def test_moves_are_pillows(name, kind):
    """To a level, as Pillow cuts decimals off; not compared where the image begins or ends."""
    image = IMAGES[kind]
    move, matrix_of, values = MOVES[name]
    height, width, channels = image.shape
    for value in values:
        matrix = matrix_of(image.shape, value)
        theirs = to_pillow(image).transform(
            (width, height),
            Image.Transform.AFFINE,
            tuple(matrix),
            resample=Image.Resampling.BILINEAR,
            fillcolor=GREY if channels == 1 else (GREY,) * 3,
        )
        where, found = inside(image.shape, matrix), move(image, value, GREY)
        assert found.shape == image.shape
        error = difference(found, theirs)
        assert error[where == 1].max() <= 1 and error[where == 0].max() == 0
        assert (where == 1).mean() > 0.2 and 0 < (where == -1).mean() < 0.1
        np.testing.assert_array_equal(found[where == 0], GREY)


def test_rotation_is_pillows_in_its_direction():
    image = IMAGES["photograph"]
    theirs = to_pillow(image).rotate(20, resample=Image.Resampling.BILINEAR, fillcolor=(GREY,) * 3)
    error = difference(geometry.rotate(image, 20, GREY), theirs)
    assert error[inside(image.shape, turned(image.shape, 20)) >= 0].max() <= 1


def test_nothing_moves(image):
    for move in (geometry.shear_x, geometry.shear_y, geometry.translate_x, geometry.rotate):
        np.testing.assert_array_equal(move(image, 0, GREY), image)


def test_whole_pixels_are_moved_unchanged():
    image = IMAGES["photograph"]
    found = geometry.translate_x(image, 13 / 130, (1, 2, 3))
    np.testing.assert_array_equal(found[:, :-13], image[:, 13:])
    np.testing.assert_array_equal(found[:, -13:], np.broadcast_to([1, 2, 3], (97, 13, 3)))
