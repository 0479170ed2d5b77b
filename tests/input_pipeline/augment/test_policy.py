"""From a config to an augmentation: its steps, and what is refused."""

import pickle

import ml_collections
import numpy as np
import pytest

from input_pipeline.augment import colour, crop, erasing, flip, randaugment, resize
from input_pipeline.augment.policy import make_augment, make_eval_transform
from input_pipeline.augment.randaugment import OPERATIONS
from input_pipeline.batches import loader
from input_pipeline.source import ArraySource
from launch.errors import InputError
from tests.input_pipeline.augment.photographs import photograph

CROP = dict(scale=(0.25, 1))
RAND = dict(layers=2, magnitude=9, std=0.5, increasing=True, probability=0.5)
FULL = dict(
    size=24,
    crop=CROP,
    flip=True,
    randaugment=RAND,
    three_augment=True,
    colour_jitter=0.3,
    erasing=0.25,
)
IMAGE = photograph(40, 50)


def by_hand(example, rng):
    """What FULL says, step by step."""
    example = crop.random_resized_crop(example, rng, 24, scale=(0.25, 1))
    example = flip.random_flip(example, rng)
    example = randaugment.rand_augment(example, rng, 2, 9, 0.5, True, 0.5)
    example = colour.three_augment(example, rng)
    example = colour.colour_jitter(example, rng, 0.3)
    return erasing.random_erasing(example, rng, 0.25)


@pytest.mark.parametrize("of_kind", [dict, ml_collections.ConfigDict])
def test_all_steps_in_their_order(of_kind):
    augment = pickle.loads(pickle.dumps(make_augment(of_kind(FULL))))
    for seed in range(20):
        example = {"image": IMAGE, "label": seed}
        found = augment(example, np.random.default_rng(seed))
        wanted = by_hand(example, np.random.default_rng(seed))
        assert found["label"] == seed
        np.testing.assert_array_equal(found["image"], wanted["image"])


def test_steps_that_are_left_out():
    off = dict(
        crop=None, flip=False, randaugment=None, three_augment=False, colour_jitter=0, erasing=0.0
    )
    for config in (dict(size=16), dict(size=16, **off)):
        found = make_augment(config)({"image": IMAGE}, np.random.default_rng(0))["image"]
        np.testing.assert_array_equal(found, resize.square(IMAGE, 16))


@pytest.mark.parametrize("channels", [1, 3])
def test_size_and_kind(channels):
    augment, rng = make_augment(FULL), np.random.default_rng(0)
    images = [photograph(h, w, channels) for h, w in ((40, 50), (9, 70), (24, 24), (5, 5))]
    for image in images * 5:
        before = image.copy()
        found = augment({"image": image}, rng)["image"]
        assert found.shape == (24, 24, channels) and found.dtype == np.uint8
        np.testing.assert_array_equal(image, before)


def test_a_colour_to_fill_grey_images_with():
    config = dict(size=16, randaugment={**RAND, "fill": [3, 140, 250]})
    with pytest.raises(InputError, match="fill must be one value for grey images, got 3; keep one"):
        make_augment(config)({"image": photograph(9, 9, channels=1)}, np.random.default_rng(0))


def test_a_fill_colour_is_what_is_seen_beyond_the_image():
    # The operation that a draw of 0.9 means.
    assert list(OPERATIONS)[int(0.9 * len(OPERATIONS))] == "TranslateX"
    config = dict(layers=1, magnitude=10, fill=(3, 140, 250))
    image = np.zeros((20, 20, 3), np.uint8)
    found = make_augment(dict(size=20, randaugment=config))({"image": image}, Always(0.9))["image"]
    # By 9 pixels to one side.
    np.testing.assert_array_equal(found[0, :9], np.broadcast_to([3, 140, 250], (9, 3)))
    assert not found[:, 9:].any()


class Always(np.random.Generator):
    """The same random number every time."""

    def __init__(self, value):
        super().__init__(np.random.PCG64())
        self.value = value

    def random(self, shape=()):
        return np.full(shape, self.value)


def test_evaluation():
    found = make_eval_transform(dict(size=28, crop_ratio=0.875))({"image": IMAGE, "label": 3})
    wanted = crop.resized_central_crop({"image": IMAGE}, 28, 0.875)
    np.testing.assert_array_equal(found["image"], wanted["image"])
    assert found["label"] == 3
    for config in (dict(size=28), dict(size=28, crop_ratio=None)):
        whole = make_eval_transform(config)({"image": IMAGE})["image"]
        np.testing.assert_array_equal(
            whole, crop.resized_central_crop({"image": IMAGE}, 28, 1.0)["image"]
        )


def test_in_the_loader_images_depend_on_seed_and_place_only():
    images = np.stack([photograph(30, 30, seed=seed) for seed in range(4)])
    source = ArraySource(images, np.arange(4), ("a", "b", "c", "d"))
    build = lambda **parts: loader.batches(  # noqa: E731
        source, 4, 5, augment=make_augment(FULL), **parts
    )
    whole = [build()[k]["image"] for k in range(3)]
    assert whole[0].shape == (4, 24, 24, 3)
    parts = [build(rows=rows) for rows in np.split(np.arange(4), 2)]
    for k in (2, 0, 1):
        joined = np.concatenate([part[k]["image"] for part in parts])
        np.testing.assert_array_equal(joined, whole[k])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(), "augment needs the field 'size'; set it in the config"),
        (dict(size=0), "augment.size must be a whole number from 1 to .*, got 0"),
        (dict(size=22.5), r"augment\.size must be a whole number from 1 to 65536, got 22\.5"),
        (dict(size="224"), r"augment\.size must be a whole number from 1 to 65536, got '224'"),
        (dict(size=float("nan")), r"augment\.size must be a whole number from 1 to 65536, got nan"),
        (dict(size=8, colour_gitter=1), "augment has no field 'colour_gitter'; use size, crop"),
        (
            dict(size=8, crop=0.08),
            r"augment\.crop must be a group of fields of scale, ratio, got 0\.08",
        ),
        (dict(size=8, crop=dict(area=1)), "augment.crop has no field 'area'; use scale, ratio"),
        (
            dict(size=8, crop=dict(scale=0.08)),
            r"augment\.crop\.scale must be two numbers above 0, the smaller one first, got 0\.08",
        ),
        (dict(size=8, crop=dict(scale=(1, 0.08))), "the smaller one first"),
        (dict(size=8, crop=dict(scale=(0, 1))), "must be two numbers above 0"),
        (dict(size=8, crop=dict(scale=(0.5, 1.5))), "must be at most 1"),
        (
            dict(size=8, crop=dict(ratio=(1, float("inf")))),
            r"augment\.crop\.ratio must be .*got \(1, inf\)",
        ),
        (dict(size=8, flip=2), "augment.flip must be True or False, got 2"),
        (dict(size=8, shift=0.5), "augment.shift must be a whole number from 1 to .*, got 0.5"),
        (dict(size=8, randaugment=True), r"augment\.randaugment must be .*got True"),
        (dict(size=8, randaugment=dict(layers=2)), "randaugment needs the field 'magnitude'"),
        (
            dict(size=8, randaugment=dict(RAND, layers=0)),
            r"randaugment\.layers must be a whole number from 1 to 65536, got 0",
        ),
        (
            dict(size=8, randaugment=dict(RAND, magnitude=-1)),
            "magnitude must be a number 0 or more, got -1",
        ),
        (
            dict(size=8, randaugment=dict(RAND, std=-1)),
            r"randaugment\.std must be a number 0 or more, got -1",
        ),
        (
            dict(size=8, randaugment=dict(RAND, probability=2)),
            r"probability must be a number in \[0, 1\], got 2",
        ),
        (
            dict(size=8, randaugment=dict(RAND, fill=(1, 2))),
            r"fill must be one value in \[0, 255\], or three, got \(1, 2\)",
        ),
        (
            dict(size=8, randaugment=dict(RAND, fill=300)),
            r"fill must be one value in \[0, 255\], or three, got 300",
        ),
        (dict(size=8, three_augment="yes"), "three_augment must be True or False, got 'yes'"),
        (
            dict(size=8, colour_jitter=-0.1),
            r"augment\.colour_jitter must be a number 0 or more, got -0\.1",
        ),
        (
            dict(size=8, colour_jitter=True),
            r"augment\.colour_jitter must be a number 0 or more, got True",
        ),
        (dict(size=8, erasing=1.1), r"augment.erasing must be a number in \[0, 1\], got 1.1"),
    ],
)
def test_wrong_fields(config, message):
    with pytest.raises(InputError, match=message) as error:
        make_augment(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(crop_ratio=0.875), "evaluation needs the field 'size'"),
        (dict(size=8, ratio=1), "evaluation has no field 'ratio'; use size, crop_ratio"),
        (dict(size=8, crop_ratio=0), "evaluation.crop_ratio must be above 0 and at most 1, got 0"),
        (
            dict(size=8, crop_ratio=1.2),
            r"evaluation\.crop_ratio must be a number in \[0, 1\], got 1\.2",
        ),
    ],
)
def test_wrong_evaluation(config, message):
    with pytest.raises(InputError, match=message):
        make_eval_transform(config)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels(channels):
    with pytest.raises(InputError, match=f"to be augmented, got {channels}"):
        make_augment(FULL)({"image": np.zeros((8, 8, channels), np.uint8)}, Always(0.9))
