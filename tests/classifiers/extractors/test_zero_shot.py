"""CLIP's logits for the names of classes against transformers."""

import numpy as np
import pytest
import torch
from etils import epath
from transformers import CLIPModel

from classifiers.clip.run import ClipRun
from classifiers.extractors.zero_shot import zero_shot
from classifiers.weights.clip_files import import_clip
from launch.errors import InputError
from tests.support import tiny_clips
from tests.support.clip_vocabulary import END

NAMES, SENTENCES = ("dog", "cat", "cod"), ("a {}.", "the {}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    import_clip(
        str(tiny_clips.save(tiny_clips.clip(), folder / "hub")), str(folder / "run"), "transformers"
    )
    return folder


def expected(folder, images, tokens):
    """Logits of each image for each class, by transformers."""
    model = CLIPModel.from_pretrained(folder / "hub").eval()
    pixels = torch.tensor(images).permute(0, 3, 1, 2) / 255
    mean, std = (
        torch.tensor(tiny_clips.PREPROCESSOR[name])[None, :, None, None]
        for name in ("image_mean", "image_std")
    )
    with torch.no_grad():
        texts = model.get_text_features(input_ids=torch.tensor(tokens)).pooler_output
        seen = model.get_image_features(pixel_values=(pixels - mean) / std).pooler_output
    normalise = torch.nn.functional.normalize
    classes = normalise(normalise(texts).reshape(len(NAMES), len(SENTENCES), -1).mean(dim=1))
    return (normalise(seen) @ classes.T * model.logit_scale.exp()).detach().numpy()


def test_logits(folder):
    run = ClipRun.open(epath.Path(folder / "run"))
    extractor = zero_shot(run, NAMES, SENTENCES)
    size = tiny_clips.SIZE
    images = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), np.uint8)
    tokens = run.tokenizer([text.replace("{}", name) for name in NAMES for text in SENTENCES])
    assert (tokens == END).any(axis=1).all()
    found = np.asarray(extractor.apply(extractor.variables, images)["logits"])
    np.testing.assert_allclose(found, expected(folder, images, tokens), rtol=1e-4, atol=1e-4)
    assert np.ptp(found) > 0.1
    assert zero_shot(run, NAMES[::-1], SENTENCES).digest != extractor.digest


def test_a_run_without_a_tokenizer(tmp_path):
    hub = tiny_clips.save(tiny_clips.clip(), tmp_path / "hub", tokenizer=False)
    import_clip(str(hub), str(tmp_path / "run"), "transformers")
    run = ClipRun.open(epath.Path(tmp_path / "run"))
    with pytest.raises(InputError, match="without a tokenizer"):
        zero_shot(run, NAMES, SENTENCES)
