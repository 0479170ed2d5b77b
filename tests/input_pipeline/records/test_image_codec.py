import cv2
import numpy as np
import pytest

from input_pipeline.records import image_codec
from launch.errors import InputError


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    np.testing.assert_array_equal(
        image_codec.decode_image(image_codec.encode_png(image), channels), image
    )


def test_red_is_first():
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    pixels = cv2.imdecode(np.frombuffer(image_codec.encode_png(red), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(pixels[0, 0], [0, 0, 255])  # OpenCV's own order is BGR
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    assert image_codec.decode_image(jpeg, 3)[0, 0, 0] > 240


def test_a_grey_file_as_colour_and_back():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    data = image_codec.encode_png(grey)
    np.testing.assert_array_equal(image_codec.decode_image(data, 3), np.repeat(grey, 3, axis=-1))


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_no_image(data):
    with pytest.raises(InputError, match="OpenCV cannot decode the"):
        image_codec.decode_image(data, 3)


def test_encode_png_refuses_floats():
    with pytest.raises(TypeError, match="expected uint8"):
        image_codec.encode_png(np.zeros((2, 2, 1), np.float32))
