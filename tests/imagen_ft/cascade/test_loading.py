"""A run is taken only for what it was trained as."""

import pytest
from etils import epath
from ml_collections import ConfigDict

from imagen_ft.cascade.loading import check_same_model
from launch.errors import InputError
from launch.runtime.run import Run


def config(width=4, dtype="float32", length=77, class_names=("cat", "dog")):
    unet = dict(name="unet", width=width, dtype=dtype, remat=dtype == "bfloat16")
    return ConfigDict(
        dict(stage=dict(unet=unet), text=dict(length=length), class_names=class_names)
    )


RUN = Run(epath.Path("run"), config(), {}, "", epath.Path("run"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(width=8), r"stage\.unet\.width = 4, the config has 8: name another run"),
        (dict(length=16), r"text\.length = 77, the config has 16"),
        (dict(class_names=("dog", "cat")), r"class_names = .*, the config has \['dog', 'cat'\]"),
    ],
)
def test_a_run_of_another_model_is_refused(changes, said):
    with pytest.raises(InputError, match=f"run was trained with {said}"):
        check_same_model(RUN, config(**changes).stage, config(**changes))


def test_a_run_may_be_computed_otherwise():
    check_same_model(RUN, config(dtype="bfloat16").stage, config(dtype="bfloat16"))
