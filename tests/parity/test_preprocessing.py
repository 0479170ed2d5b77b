"""What is evaluated against transformers' processors and Pillow, from the files beside weights."""

import json

import numpy as np
import PIL.Image
import pytest
import transformers
import transformers.models.bit.image_processing_pil_bit
import transformers.models.convnext.image_processing_pil_convnext
import transformers.models.deit.image_processing_pil_deit
import transformers.models.vit.image_processing_pil_vit
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from classifiers.weights.preprocessing import described, preprocessing, scaling
from input_pipeline.augment.pillow import REACH, resize_as_pillow
from input_pipeline.augment.policy import make_eval_transform
from launch.errors import InputError
from launch.runtime.layers.layers import PIXELS, normalise_pixels
from tests.input_pipeline.augment.photographs import photograph

_OF_PIL = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}
_MODELS = transformers.models
PROCESSORS = {
    "Bit": _MODELS.bit.image_processing_pil_bit.BitImageProcessorPil,
    "CLIP": CLIPImageProcessorPil,
    "ConvNext": _MODELS.convnext.image_processing_pil_convnext.ConvNextImageProcessorPil,
    "DeiT": _MODELS.deit.image_processing_pil_deit.DeiTImageProcessorPil,
    "ViT": _MODELS.vit.image_processing_pil_vit.ViTImageProcessorPil,
}


@pytest.mark.parametrize("kernel", REACH)
@pytest.mark.parametrize("shape", [(24, 30), (90, 61), (75, 200)])
def test_pillow_to_the_last_bit(kernel, shape):
    image = photograph(60, 80, 3)
    ours = resize_as_pillow(image, *shape, kernel)
    theirs = PIL.Image.fromarray(image).resize(shape[::-1], _OF_PIL[kernel])
    np.testing.assert_array_equal(ours, np.asarray(theirs))


SQUARE = {"height": 24, "width": 24}
CASES = {
    "ViT": ("ViT", {"size": SQUARE}),
    "ViT, bicubic": ("ViT", {"size": SQUARE, "resample": 3}),
    "DeiT": ("DeiT", {"size": {"height": 31, "width": 31}, "crop_size": SQUARE}),
    "DINOv2": ("Bit", {"size": {"shortest_edge": 28}, "crop_size": SQUARE}),
    "248 to 224": ("Bit", {"size": {"shortest_edge": 248}, "crop_size": 224}),
    "CLIP": ("CLIP", {"size": {"shortest_edge": 24}, "crop_size": SQUARE}),
    "no crop": ("DeiT", {"size": SQUARE, "do_center_crop": False}),
    "ConvNext": ("ConvNext", {"size": {"shortest_edge": 24}, "crop_pct": 0.8}),
    "ConvNext, large": ("ConvNext", {"size": {"shortest_edge": 384}}),
}


@pytest.mark.parametrize("case", CASES)
def test_processors_of_transformers(case, tmp_path):
    name, fields = CASES[case]
    processor = PROCESSORS[name](**fields)
    written = {**processor.to_dict(), "image_processor_type": f"{name}ImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written, default=str))
    agree(tmp_path, processor)


def agree(folder, processor):
    """Compares what the network sees, by the files of a folder and by a processor."""
    image = photograph(60, 80, 3)
    what = preprocessing(folder, "transformers")
    seen = make_eval_transform(what.evaluation(what.size))({"image": image})["image"]
    ours = normalise_pixels(seen[None] / np.float32(127.5) - 1, scaling(folder, folder))
    theirs = processor(image, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


WRITTEN = {
    "Bit": {"size": 24, "crop_ratio": 24 / 28, "resize": "pil_bicubic"},
    "ViT": {"size": 24, "stretch": True, "resize": "pil_bilinear"},
    "DeiT": {"size": 24, "crop_ratio": 0.8, "stretch": True, "resize": "pil_bicubic"},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_read_alike(name, tmp_path):
    """By transformers' processor of the name in the file, and by us; timm's words too."""
    fields = {"crop_ratio": 1.0, **WRITTEN[name]}
    written = described(fields, "imagenet", (24, 24, 3), "transformers")
    assert written["image_processor_type"] == f"{name}ImageProcessor"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    agree(tmp_path, PROCESSORS[name](**written))
    timm = described(fields, "imagenet", (24, 24, 3), "timm")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": timm}))
    for layout in ("transformers", "timm"):
        found = preprocessing(tmp_path, layout).evaluation(24)
        assert found.pop("crop_ratio") == pytest.approx(fields["crop_ratio"], rel=1e-9)
        assert found == {key: value for key, value in fields.items() if key != "crop_ratio"}
        (tmp_path / "config.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # Files of transformers before 4.20 have one number.
        (dict(feature_extractor_type="ViTFeatureExtractor", size=24), (24, 1.0, True)),
        (dict(feature_extractor_type="CLIP", size=28, crop_size=24), (24, 6 / 7, 0)),
        (dict(pretrained_cfg=dict(input_size=[3, 8, 8], test_input_size=[3, 9, 9])), (9, 0.875, 0)),
        (dict(pretrained_cfg=dict(crop_pct=0.9, test_crop_pct=1.0)), (None, 1.0, 0)),
        (dict(pretrained_cfg=dict(crop_pct=0.9, crop_mode="squash")), (None, 0.9, True)),
    ],
)  # fmt: skip
def test_older_files_and_timms(config, expected, tmp_path):
    name = "config.json" if "pretrained_cfg" in config else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps(config))
    found = preprocessing(tmp_path, "timm")
    assert (found.size, found.crop_ratio, found.stretch) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(resample=1),
            r"resample must be bilinear \(2\) or bicubic \(3\), the only one implemented, got 1",
        ),
        (dict(do_resize=False), "do_resize must be True, the only one implemented, got False"),
        (dict(size={"height": 8, "width": 9}), r"size must be a square, the only one implemented"),
        (dict(size="24"), "size must be a positive whole number, got '24'"),
        (dict(crop_size=32, do_center_crop=True), "crop_size must be at most the size .*got 32"),
        (dict(rescale_factor=1 / 127.5), "rescale_factor must be 1 / 255, .*got 0.007"),
        (dict(do_rescale=False), "do_rescale must be True, the only one implemented, got False"),
        (
            dict(do_normalize=False),
            "do_normalize must be True, the only one implemented, got False",
        ),
        (dict(image_mean=[0.1] * 3), "must be one of plain, imagenet, clip, efficientnet_lite"),
    ],
)
def test_what_is_not_implemented(changes, message, tmp_path):
    mean, std = PIXELS["plain"]
    config = {"size": SQUARE, "image_mean": list(mean), "image_std": list(std), **changes}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        preprocessing(tmp_path, "transformers")
        scaling(tmp_path, tmp_path)
