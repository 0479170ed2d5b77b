"""What measures of images share: those that most have use for, and the arguments of each."""

from ml_collections import ConfigDict

MEASURES = (
    "frechet",
    "spatial_frechet",
    "inception_score",
    "kernel",
    "sliced",
    "precision_recall",
    "density_coverage",
    "relative",
    "classes_apart",
    "copying",
)


def set_measures(config: ConfigDict, subset_size: int, without: tuple[str, ...] = ()) -> None:
    """Sets `config.measures` and the arguments of each, as papers have them.

    Args:
        config: of imagen_ft.evaluate.
        subset_size: images of a subset, for the kernel distance; 1000 where there are as many.
        without: measures that the extractor has not.
    """
    config.measures = tuple(measure for measure in MEASURES if measure not in without)
    config.update(_arguments(subset_size))


def while_training(
    pictures: ConfigDict,
    measure: str = "frechet",
    num_images: int = 10_000,
    subset_size: int = 1000,
) -> dict:
    """`config.evaluation_metric`: what a stage draws, measured; Azizi et al. choose by FID-10K.

    It is off: --config.evaluation_metric.every=STEPS turns it on, and with it
    --config.best.metric=sampled_fid keeps the best checkpoint.

    Args:
        pictures: `config.pictures`, whose way of sampling it takes.
        measure: one of `config.measures`.
        num_images: that are drawn; as many of each class.
        subset_size: see `set_measures`.
    """
    sampling = {name: value for name, value in pictures.items() if name != "count"}
    return dict(
        every=0,  # steps
        measure=measure,
        num_images=num_images,
        batch_size=256,
        extractor=dict(name="inception", rule="tf1", path=""),
        # An npz of statistics; without one the held-out images are what is compared with.
        reference=dict(statistics=""),
        sampling=sampling,
        **_arguments(subset_size),
    )


def _arguments(subset_size: int) -> dict:
    return dict(
        allow_few_images=False,
        # Chong & Forsyth 2020, with the points of Stein et al. 2023: a tenth of the images, but at
        # most 5,000, has to be more than the features are wide.
        frechet_infinity=dict(num_points=15, seed=0),
        inception_score=dict(rule="torch_fidelity", splits=10, seed=2020),
        kernel=dict(subsets=100, subset_size=subset_size, seed=2020),
        sliced=dict(num_directions=1000, seed=2020),
        precision_recall=dict(k=3, comparison="<="),
        density_coverage=dict(k=5, comparison="<"),
    )
