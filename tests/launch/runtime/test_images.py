import numpy as np

from launch.runtime.images import finite_images, to_float, to_uint8


def test_to_uint8():
    values = np.float32([-2, -1, -0.996, 0, 0.5, 1, 3]).reshape(1, 1, 7, 1)
    assert to_uint8(values).ravel().tolist() == [0, 0, 1, 128, 191, 255, 255]


def test_to_float_is_undone_by_to_uint8():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = np.asarray(to_float(values))
    assert floats.min() == -1.0 and floats.max() == 1.0
    np.testing.assert_array_equal(to_uint8(floats), values)


def test_finite_images():
    images = np.zeros((4, 2, 2, 3), np.float32)
    images[0, 1, 1, 2], images[2, 0, 0, 0], images[3, 0, 1, 1] = np.nan, -np.inf, 1e30
    assert finite_images(images).tolist() == [False, True, False, True]
