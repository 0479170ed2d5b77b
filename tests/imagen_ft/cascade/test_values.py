"""Wrong arguments in Python: each is one line that says what is needed."""

import dataclasses

import jaxtyping
import numpy as np
import pytest

import imagen_ft.cascade.cascade as cascades
from imagen_ft.cascade import Cascade, Request, film, grid, memory_table, show, to_pil
from imagen_ft.cascade.request import KINDS
from launch.errors import InputError
from tests.support.small_cascade import config, make_cascade

IMAGES = np.zeros((2, 4, 4, 3), np.uint8)
# The call, and what each wrong value of an argument of it leads to.
WRONG = {
    "sample": {
        "prompts": [
            (5, "a string, or a list of strings"),
            (b"ab", "a string"),
            ({"ab": 1}, "a string"),
        ],
        "seed": [("a", "an integer from 0 to 4294967295"), (1.5, "an integer"), (None, "an int")],
        "num_steps": [("x", "an integer"), (2.5, "an integer")],
        "guidance_weight": [
            ("high", "a number"),
            (10**400, "a number"),
            (None, "a number"),
            ([1], "a number"),
        ],
        "negative_prompt": [(5, "a string, or a list of strings")],
        "batch_size": [("x", "an integer"), (2.0, "an integer")],
        "indices": [(5, "a list of integers"), ([0.5], "a list of integers"), ("a", "a list")],
        "positions": [([[0]], "a list of integers")],
        "labels": [(5, "a list of class numbers"), ([[0], [1, 2]], "a list of class numbers")],
        "low": [([[1], [1, 2]], "images, uint8")],
        "start": [([[1], [1, 2]], "images, uint8")],
        "skip_steps": [("x", "an integer"), (None, "an integer")],
        "progress": [(5, "a function")],
    },
    "Request": {"seed": [(-1, "an integer from 0"), (2**32, "an integer from 0 to 4294967295")]},
    "path": {"prompts": [(5, "a string")], "seed": [("a", "an integer from 0")]},
    "stream": {"request": [("ab", "a Request .sample takes prompts.")]},
    "with_": {"batch_size": [("x", "an integer")], "sampler": [(5, "a name")]},
    "load": {
        "config": [(x, "a config, a file, a run or weights") for x in (5, None, [5], {"a": 1})],
        "prompts": [(5, "a string, or a list of strings")],
        "mesh": [(x, "a mesh, or the size") for x in ("x", 3, {"x": 1}, {"data": "x"})],
        "text": [(5, "a path")],
        "guide": [({"run": 5}, "a dict of some of run"), ({"best": 1}, "a dict of some of")],
    },
    "memory_table": {"config": [(5, "a config, a file")]},
    "show": {
        "images": [(5, "a list of images"), ("x", "a list of images")],
        "captions": [(5, "a list of strings"), ([1, 2], "a list of strings")],
        "columns": [("x", "an integer of at least 1"), (-1, "an integer of at least 1")],
    },
    "grid": {"images": [(5, "a list of images")], "columns": [(1.5, "an integer of at least 1")]},
    "to_pil": {"images": [(5, "a list of images"), ("x", "a list of images")]},
    "film": {
        "steps": [(5, "uint8 .steps, n, size, size, c., as Cascade.path")],
        "captions": [(5, "a list of strings")],
        "moments": [("x", "an integer of at least 1")],
    },
}
CASES = [
    (call, argument, value, words)
    for call, arguments in WRONG.items()
    for argument, values in arguments.items()
    for value, words in values
]


@pytest.fixture(scope="module")
def calls():
    """Each with arguments that are right; `load` needs no weights."""
    cascade = make_cascade()
    right = {
        "sample": (cascade.sample, dict(prompts=["ab"])),
        "Request": (Request, dict(prompts=["ab"])),
        "path": (cascade.path, dict(prompts=["ab"])),
        "stream": (cascade.stream, {}),
        "with_": (cascade.with_, {}),
        "load": (Cascade.load, dict(config=config())),
        "memory_table": (memory_table, {}),
        "show": (show, dict(images=IMAGES)),
        "grid": (grid, dict(images=IMAGES)),
        "to_pil": (to_pil, {}),
        "film": (film, dict(steps=IMAGES[None], captions=["a", "b"])),
    }
    loaded = cascade.stages, cascade.variables, cascade.digests
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascades, "load_stages", lambda *_, **__: loaded)
        # Users have no checks of annotations, which would come first.
        jaxtyping.config.update("jaxtyping_disable", True)
        yield right
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(("call", "argument", "value", "words"), CASES)
def test_a_wrong_argument_is_one_line(calls, call, argument, value, words):
    function, right = calls[call]
    if argument == "labels":
        right = {}
    with pytest.raises(InputError, match=f"^{argument} must be {words}") as error:
        function(**{**right, argument: value})
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_every_field_of_a_request_has_a_kind():
    assert set(KINDS) == {field.name for field in dataclasses.fields(Request)}


def test_values_are_taken_as_they_come():
    """In the types that numpy and lists give."""
    request = Request(np.array(["ab", "c"]), seed=np.uint32(2**32 - 1), indices=[1, 5])
    assert request.prompts == ["ab", "c"] and request.seed == 2**32 - 1
    assert request.indices.tolist() == [1, 5] and Request(labels=[0, 1]).labels.tolist() == [0, 1]
    assert Request("ab", negative_prompt=np.array(["c"])).negatives() == ["c"]
