import cv2
import numpy as np
import pytest

from input_pipeline.records import examples
from launch.errors import InputError


def test_round_trip_of_every_kind():
    values = {"b": b"\0\xff", "s": "fünf", "i": -3, "n": np.int64(1 << 40), "f": 0.5, "l": [1, 2]}
    assert examples.decode_example(
        examples.encode_example({**values, "t": ["a", "b"], "e": []})
    ) == {
        "b": [b"\0\xff"],
        "s": ["fünf".encode()],
        "i": [-3],
        "n": [1 << 40],
        "f": [0.5],
        "l": [1, 2],
        "t": [b"a", b"b"],
        "e": [],
    }


def test_bytes_of_an_example():
    # Example{1: Features{1: map entry{1: "i", 2: Feature{3: Int64List{1: packed [3]}}}}}
    assert examples.encode_example({"i": 3}) == b"\n\x0c\n\n\n\x01i\x12\x05\x1a\x03\n\x01\x03"


def test_same_values_give_the_same_bytes_in_any_order():
    names = [f"name{i}" for i in range(20)]
    forward = examples.encode_example({name: 1 for name in names})
    assert forward == examples.encode_example({name: 1 for name in reversed(names)})


def test_values_of_no_kind_are_refused():
    with pytest.raises(TypeError, match="x: expected"):
        examples.encode_example({"x": [1, "a"]})


def test_no_example():
    with pytest.raises(InputError, match=r"not a tf\.train\.Example"):
        examples.decode_example(b"\xff\xff\xff")


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    np.testing.assert_array_equal(
        examples.decode_image(examples.encode_png(image), channels), image
    )


def test_red_is_first():
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    pixels = cv2.imdecode(np.frombuffer(examples.encode_png(red), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(pixels[0, 0], [0, 0, 255])  # OpenCV's own order is BGR
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    assert examples.decode_image(jpeg, 3)[0, 0, 0] > 240


def test_a_grey_file_as_colour_and_back():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    data = examples.encode_png(grey)
    np.testing.assert_array_equal(examples.decode_image(data, 3), np.repeat(grey, 3, axis=-1))


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_no_image(data):
    with pytest.raises(InputError, match="no image OpenCV decodes"):
        examples.decode_image(data, 3)


def test_encode_png_refuses_floats():
    with pytest.raises(TypeError, match="expected uint8"):
        examples.encode_png(np.zeros((2, 2, 1), np.float32))
