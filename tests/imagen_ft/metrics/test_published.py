"""The numbers that ADM's evaluator prints of a batch that its authors published."""

import os
from pathlib import Path

import pytest

from classifiers.extractors.features import features
from classifiers.extractors.inception import inception
from imagen_ft.evaluation.image_sets import npz_samples
from imagen_ft.metrics import reference
from imagen_ft.metrics.frechet import frechet_distance
from imagen_ft.metrics.inception_score import inception_score
from imagen_ft.metrics.neighbours import CONVENTIONS, neighbourhoods
from imagen_ft.metrics.statistics import of_features

# guided-diffusion, evaluations/README.md: ADM-G + ADM-U, ImageNet at 256 pixels.
PUBLISHED = {
    "IS": 215.8370361328125,
    "FID": 3.9425574129223264,
    "sFID": 6.140433703346162,
    "precision": 0.8265,
    "recall": 0.5309,
}
# The published weights are TensorFlow's; ours are their copy for PyTorch, which rounds differently.
TOLERANCES = {"IS": 0.3, "FID": 0.01, "sFID": 0.02, "precision": 2e-3, "recall": 2e-3}
FILES = ("ADM_REFERENCE", "ADM_SAMPLES", "INCEPTION_WEIGHTS")


@pytest.fixture(scope="module")
def paths():
    """What the environment names."""
    named = {name: Path(os.environ.get(name, "")) for name in FILES}
    if missing := [name for name, path in named.items() if not path.is_file()]:
        pytest.skip(f"did not run: {', '.join(missing)} must name files, see {test_adm.__name__}")
    return named


@pytest.mark.slow
def test_adm(paths, tmp_path):
    """All five, of 50,000 images: hours on a CPU, minutes on a GPU; 24 GB of memory.

    In the environment: ADM_REFERENCE is the path of VIRTUAL_imagenet256_labeled.npz, ADM_SAMPLES
    that of admnet_guided_upsampled_imagenet256.npz (openaipublic.blob.core.windows.net/diffusion/
    jul-2021/ref_batches/imagenet/256/), INCEPTION_WEIGHTS that of one of `inception.FILES`.
    """
    extractor = inception("tf1", paths["INCEPTION_WEIGHTS"])
    of_file = reference.read(paths["ADM_REFERENCE"])
    real = features(extractor, npz_samples(paths["ADM_REFERENCE"]), tmp_path)["features"]
    taps = ("features", "spatial", "logits_unbiased")
    ours = features(extractor, npz_samples(paths["ADM_SAMPLES"]), tmp_path, taps)
    spatial = ours["spatial"].reshape(len(ours["spatial"]), -1)
    shares = neighbourhoods(ours["features"], real, CONVENTIONS["adm"])
    found = {
        "IS": inception_score(ours["logits_unbiased"], "adm")[0],
        "FID": frechet_distance(of_features(ours["features"]), of_file.pooled),
        "sFID": frechet_distance(of_features(spatial), of_file.spatial),
        "precision": shares.precision,
        "recall": shares.recall,
    }
    print(found)
    for name, published in PUBLISHED.items():
        assert found[name] == pytest.approx(published, abs=TOLERANCES[name]), name
