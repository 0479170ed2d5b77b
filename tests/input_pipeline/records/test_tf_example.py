import numpy as np
import pytest

from input_pipeline.records import tf_example
from launch.errors import InputError


def test_round_trip_of_every_kind():
    values = {"b": b"\0\xff", "s": "fünf", "i": -3, "n": np.int64(1 << 40), "f": 0.5, "l": [1, 2]}
    assert tf_example.decode_example(
        tf_example.encode_example({**values, "t": ["a", "b"], "e": []})
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
    assert tf_example.encode_example({"i": 3}) == b"\n\x0c\n\n\n\x01i\x12\x05\x1a\x03\n\x01\x03"


def test_same_values_give_the_same_bytes_in_any_order():
    names = [f"name{i}" for i in range(20)]
    forward = tf_example.encode_example({name: 1 for name in names})
    assert forward == tf_example.encode_example({name: 1 for name in reversed(names)})


def test_values_of_no_kind_are_refused():
    with pytest.raises(TypeError, match="x: expected"):
        tf_example.encode_example({"x": [1, "a"]})


def test_no_example():
    with pytest.raises(InputError, match=r"not a tf\.train\.Example"):
        tf_example.decode_example(b"\xff\xff\xff")
