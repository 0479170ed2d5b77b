import cv2
import numpy as np
import pytest

from input_pipeline.augment.resize import resize, square
from tests.input_pipeline.augment.photographs import photograph


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shrinking_averages_areas(channels, dtype):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, channels)).astype(dtype)
    small = resize(image, 4)
    assert small.shape == (4, 4, channels) and small.dtype == dtype
    means = image.reshape(4, 2, 4, 2, channels).mean(axis=(1, 3))
    np.testing.assert_allclose(small, means, atol=0.5 if dtype == np.uint8 else 1e-4)


def test_shrinking_a_checkerboard_leaves_no_pattern():
    board = (np.indices((9, 9)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    small = resize(board, 3)
    assert small.min() > 100 and small.max() < 155


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((60, 80), (33, 79)), ((61, 50), (20, 50)), ((50, 61), (50, 24)), ((301, 250), 224)],
)
def test_any_shrinking_averages_areas(shape, size, channels):
    """By the integral of the image, in float64; and as OpenCV rounds."""
    image = photograph(*shape, channels)
    found = resize(image, size)
    height, width = found.shape[:2]
    integral = np.zeros((shape[0] + 1, shape[1] + 1, channels))
    integral[1:, 1:] = image.cumsum(0, dtype=float).cumsum(1)
    for axis, length in ((0, height), (1, width)):
        at = np.linspace(0, shape[axis], length + 1)
        values = lambda line, at=at: np.interp(at, np.arange(len(line)), line)  # noqa: E731
        integral = np.diff(np.apply_along_axis(values, axis, integral), axis=axis)
    exact = integral * height * width / np.prod(shape)
    assert found.shape == (height, width, channels) and found.dtype == np.uint8
    assert np.abs(found - exact).max() < 0.501
    opencv = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).reshape(found.shape)
    different = found != opencv
    assert different.mean() < 0.001 and np.abs(found - opencv.astype(int)).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(70, 90), (1210, 1230)])
def test_large_images_and_parts_of_images(height, width):
    """OpenCV averages what is large, like floats."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)[5:, 7:]
    exact = resize(image.astype(np.float32), (40, 50))
    assert np.abs(resize(image, (40, 50)) - exact).max() < 0.501


def test_growing_is_bilinear():
    image = np.array([[0.0, 1.0]], np.float32)[..., None]
    np.testing.assert_allclose(resize(image, (1, 4))[0, :, 0], [0, 0.25, 0.75, 1], atol=1e-6)


def test_each_axis_by_its_own_rule():
    image = np.array([[0, 255], [255, 0]], np.uint8)[..., None]
    # Averaged to one row of 127.5, then widened.
    out = resize(image, (1, 4))
    assert out.shape == (1, 4, 1)
    np.testing.assert_allclose(out[..., 0], 127.5, atol=0.6)


def test_the_same_size_is_the_same_image():
    image = np.zeros((3, 5, 1), np.uint8)
    assert resize(image, (3, 5)) is image


def test_floats_keep_their_range():
    image = np.full((6, 6, 3), -1, np.float32)
    np.testing.assert_array_equal(resize(image, 4), np.full((4, 4, 3), -1, np.float32))


def test_square_of_a_square_is_resize():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    for size in (4, 8, 13):
        np.testing.assert_array_equal(square(image, size), resize(image, size))


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 10)])
def test_square_shows_the_middle(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.float32)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    middle = image[top : top + side, left : left + side]
    np.testing.assert_array_equal(square(image, side), middle)
    assert square(image, 12).shape == (12, 12, 3)
    np.testing.assert_allclose(square(image, 1)[0, 0], middle.mean(axis=(0, 1)), rtol=1e-4)


def test_square_is_the_shorter_side_resized_and_the_centre_cropped():
    y, x = np.mgrid[:48, :64]
    image = (np.sin(y / 7) + np.cos(x / 9))[..., None].astype(np.float32)
    whole = resize(image, (12, 16))
    np.testing.assert_allclose(square(image, 12), whole[:, 2:14], atol=1e-5)
