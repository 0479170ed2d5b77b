"""The configs have the papers' numbers, and arguments change what they say they do."""

import math
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from classifiers.evaluation import label_maps
from input_pipeline import class_names
from input_pipeline.batches.rates import cpu_seconds
from input_pipeline.imagenet import wordnet_ids
from input_pipeline.sources import subsets
from launch.runtime.devices.hardware import CHIPS, fed_seconds
from tests.configs.tables import IMAGENET, RECIPES, load


def test_arms_of_the_classifiers():
    get_config = load("configs/digits/classifier.py").get_config
    real, fake = dict(name="digits", split="train"), "runs/digits/synthetic"
    assert get_config("").train_sources.to_dict() == {"real": real}
    assert get_config("arm=pool").train_sources.real.split == "pool"
    mixed = get_config("arm=real+synthetic,k=10").train_sources.to_dict()
    assert mixed == {"real": real, "synthetic": dict(name="synthetic", path=fake, copies=10)}
    assert list(get_config("arm=synthetic").train_sources) == ["synthetic"]
    with pytest.raises(ValueError, match="arm must be one of real, synthetic"):
        get_config("arm=fake")


@pytest.mark.parametrize("name", IMAGENET)
def test_the_papers_numbers(name):
    steps, optimizer, _, size, low_size, crop = IMAGENET[name]
    public = name.startswith("if_")
    config = load(f"configs/imagenet/{name}.py").get_config()
    # Azizi et al. 2023, section 4.1; Saharia et al. 2022, appendix.
    assert (config.total_steps, config.optimizer.name) == (steps, optimizer)
    assert (config.batch_size, config.accumulation, config.text_drop) == (2048, 1, 0.1)
    assert (config.optimizer.learning_rate, config.optimizer.warmup_steps) == (1e-4, 10_000)
    assert (config.optimizer.schedule, config.optimizer.weight_decay) == ("constant", 0.0)
    if optimizer == "adam":
        moments = config.optimizer.b1, config.optimizer.b2, config.optimizer.eps
        assert moments == (0.9, 0.999, 1e-8)
    assert config.ema.main.decay == 0.9999 and config.stage.prediction == "eps"
    stage = config.stage
    assert (stage.size, stage.low_size, config.crop_size) == (size, low_size, crop)
    schedule = "linear" if size == 1024 else "cosine"
    assert stage.schedule == ("squaredcos_cap_v2" if public else schedule)
    # DeepFloyd IF learns its variance (Nichol & Dhariwal 2021, section 3.1: lambda = 0.001).
    assert stage.learned_variance == public and config.loss.vlb_weight == 0.001 * public
    assert stage.upsampling == ("bilinear_corners" if public else "bilinear")
    assert config.init_from == ("weights/" + name.replace("_", "-").upper() if public else "")
    assert config.text.null == ("empty" if public else "zeros")
    assert config.text.shape == ((77 if public else 128), 4096)
    assert stage.unet.preset == name and stage.unet.dtype == "bfloat16"
    maximum = config.pictures.get("threshold_maximum")
    thresholds = (95.0, 1.0 if low_size else 1.5) if public else (99.5, None)
    assert (config.pictures.threshold_percentile, maximum) == thresholds


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_numbers(name):
    epochs, batch, optimizer, rate, decay, size, _ = RECIPES[name]
    get_config = load(f"configs/imagenet/{name}.py").get_config
    config, images = get_config(), 1_281_167
    assert config.total_steps == round(epochs * images / batch) and config.batch_size == batch
    found = config.optimizer
    assert (found.name, found.learning_rate, found.weight_decay) == (optimizer, rate, decay)
    assert config.evaluation.size == (config.augment or config.evaluation).size == size
    assert config.model.dtype == "bfloat16" and config.num_classes == 1000
    deit, rs = name.startswith("deit"), name.startswith("resnet_rs")
    plain = name in ("cas_resnet50", "vit_s16")
    assert config.label_smoothing == (0.0 if plain else 0.1)
    mix = dict(mixup=0.8, cutmix=1.0) if deit else dict(mixup=0.2) if name == "vit_s16" else {}
    assert config.mix.to_dict() == mix
    averaged = 0.9999 if rs else 0.99996 if name in ("deit_s", "deit_b") else None
    assert (config.ema.main.decay if config.ema else None) == averaged
    repeated = deit and name != "deit_l"
    assert config.repeats == (3 if repeated else 1)
    assert config.augment.get("erasing", 0) == (0.25 if repeated else 0)
    assert found.clip_norm == (1.0 if name == "vit_s16" else 0.0)
    if name == "cas_resnet50":
        assert found.nesterov and found.schedule == "step" and not config.augment
        drops = [round(30 * n * images / batch) for n in (1, 2)] + [round(80 * images / batch)]
        assert list(found.boundaries) == drops
    else:
        assert found.schedule == ("constant" if name == "deit_b_384" else "cosine")
        strong = name in ("resnet_rs101_192", "resnet_rs152_224")
        magnitude = 9 if deit else 15 if strong else 10
        rand = config.augment.randaugment
        assert (rand.layers, rand.magnitude) == (2, magnitude)
    warmup = {"vit_s16": 10_000, "deit_b_384": 0}.get(name, round(5 * images / batch))
    assert found.warmup_steps == warmup
    # An epoch of a mixture is longer; the warm-up is not.
    mixed = get_config("arm=real+synthetic,k=3")
    assert mixed.total_steps == round(4 * epochs * images / batch)
    assert mixed.optimizer.warmup_steps == warmup
    assert get_config("arm=real+synthetic,k=3,same_steps").total_steps == config.total_steps
    assert get_config("arm=synthetic,k=2").total_steps == round(2 * epochs * images / batch)
    half = get_config(f"batch={batch // 2}")
    assert half.optimizer.learning_rate == rate / 2 and half.batch_size == batch // 2
    assert half.optimizer.warmup_steps == pytest.approx(2 * warmup, abs=1)
    for arm in ("real", "synthetic", "real+synthetic"):
        start = f"runs/imagenet/deit_b/{arm}" if name == "deit_b_384" else ""
        assert get_config(f"arm={arm}").init_from == start


@pytest.mark.parametrize("name", RECIPES)
def test_headers_tell_the_longer_of_computing_and_decoding(name):
    module = load(f"configs/imagenet/{name}.py")
    config, text = module.get_config(), " ".join(module.__doc__.split())
    work = cpu_seconds(config.total_steps * config.batch_size)["JPEG files"]
    times = re.findall(
        r"(\d+) (?:TPU )?(\w+), ([\d.]+) hours \(([\d.]+) by operations, ([\d.]+) to decode\)", text
    )
    assert [kind for _, kind, *_ in times] == ["v4", "H100"]
    for chips, kind, *hours in times:
        (chip,) = (chip for chip in CHIPS if chip.name == kind)
        longer, operations, decoding = map(float, hours)
        expected = fed_seconds(work, chip, int(chips)) / 3600
        assert decoding == pytest.approx(expected, abs=0.051)
        assert longer == max(operations, decoding)


def test_few_and_unequal_images_to_train_on():
    get_config = load("configs/imagenet/resnet50.py").get_config
    config = get_config("per_class=100,epochs=100,batch=2048")
    assert config.train_sources.real.per_class == 100
    assert config.total_steps == round(100 * 100_000 / 2048)
    mixed = get_config("arm=real+synthetic,k=2,per_class=100,epochs=100")
    assert mixed.total_steps == round(100 * (100_000 + 2 * 1_281_167) / 4096)
    copied = get_config("per_class=100,prepared=/p").train_sources.real.to_dict()
    assert copied == dict(name="tfds", path="/p", split="train", per_class=100)
    config = get_config("gamma=50,epochs=100")
    assert config.train_sources.real.long_tail.to_dict() == dict(n_max=1300, gamma=50)
    images = int(subsets.long_tail_counts(1000, 1300, 50).sum())
    assert config.total_steps == round(100 * images / 4096)


@pytest.mark.parametrize("name", IMAGENET)
@pytest.mark.parametrize(("argument", "devices"), [("", 256), ("host", 8), ("runlocal", 1)])
def test_batches_fit_the_hardware(name, argument, devices):
    config = load(f"configs/imagenet/{name}.py").get_config(argument)
    sizes = [size for size in config.mesh.values() if size != -1]
    assert devices % math.prod(sizes) == 0
    assert config.batch_size % (config.accumulation * devices) == 0
    assert config.evaluation_batch_size % devices == 0


def test_imagenet_sources():
    get_config = load("configs/imagenet/if_i_l.py").get_config
    config = get_config("data=x.zip,train=a/b,val=c")
    assert (config.train_source.path, config.train_source.root) == ("x.zip", "a/b")
    assert (config.evaluation_source.path, config.evaluation_source.root) == ("x.zip", "c")
    config = get_config("runlocal")
    assert config.init_from == "" and "cache" not in config.text
    source = config.train_source.to_dict()
    assert source.pop("standin") and source == get_config().train_source.to_dict()
    assert "standin" not in get_config("runlocal,data=x.zip").train_source


def test_the_longest_name_fits_the_embedded_encoder():
    for group, names in (("cifar10", None), ("imagenet", class_names.load("imagenet"))):
        common = load(f"configs/{group}/common.py")
        text = common.TEXT if group == "cifar10" else common.LOCAL_TEXT
        longest = max(len(name.encode()) for name in names or common.CLASS_NAMES)
        assert text["max_length"] == longest + 1


def test_sets_of_the_imagenet_evaluation():
    get_config = load("configs/imagenet/evaluate.py").get_config
    sets = get_config("").sets
    assert sorted(sets) == ["a", "objectnet", "r", "sketch", "v2", "val"]
    assert {found.label_map for found in sets.values()} == {"", *label_maps.MAPS}
    assert all(found.prepare for found in sets.values())
    assert sorted(get_config("sets=r+a").sets) == ["a", "r"]
    assert list(get_config("runlocal").sets) == ["val"]
    assert get_config("sets=r").attacks.to_dict() == {}
    with pytest.raises(
        ValueError, match=r"sets must be some of val\+v2\+sketch\+r\+a\+objectnet, got val\+w2"
    ):
        get_config("sets=val+w2")
    config = get_config("data=x.zip,val=a,train=b,shifts=/y,gamma=100")
    assert (config.sets.val.source.path, config.sets.val.source.root) == ("x.zip", "a")
    assert config.sets.r.source.path == "/y/imagenet-r"
    assert config.shots.source.root == "b" and (config.shots.many, config.shots.few) == (800, 300)
    assert config.shots.source.long_tail.to_dict() == dict(n_max=1300, gamma=100)


def test_cifar10_samples_what_was_trained():
    for argument in ("", "runlocal"):
        stages = load("configs/cifar10/sample.py").get_config(argument).stages
        for name, stage in stages.items():
            path = f"configs/cifar10/finetune_{name}.py"
            trained = load(path).get_config(argument)
            sampled = stage.stage.copy_and_resolve_references()
            if not argument:
                # It may be sampled on a GPU that is slow in the dtype of the training.
                assert (sampled.unet.dtype, trained.stage.unet.dtype) == ("auto", "bfloat16")
                sampled.unet.dtype = "bfloat16"
            assert trained.stage == sampled and stage.run == f"runs/cifar10/{name}"
            assert f"--workdir={stage.run}" in load(path).__doc__
            assert trained.text == load("configs/cifar10/sample.py").get_config(argument).text


def test_imagenet_that_tfds_prepared():
    config = load("configs/imagenet/if_i_l.py").get_config("tfds=gs://x/imagenet2012")
    path = dict(name="tfds", path="gs://x/imagenet2012")
    assert config.train_source.to_dict() == dict(path, split="train")
    assert config.evaluation_source.to_dict() == dict(path, split="validation", per_class=10)
    # Both number the classes by the WordNet ids in order.
    package = Path(find_spec("tensorflow_datasets").submodule_search_locations[0])
    labels = (package / "datasets/imagenet2012/labels.txt").read_text().split()
    assert tuple(labels) == tuple(wordnet_ids())
