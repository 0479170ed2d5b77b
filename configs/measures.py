"""The measures of images that most configs use, and the arguments of each."""

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
    """Sets `config.measures`, and the arguments of each as in the papers.

    `subset_size` is the number of images in a subset for the kernel distance: 1000, or fewer if
    there are not that many. `without` lists measures that the extractor lacks.
    """
    config.measures = tuple(measure for measure in MEASURES if measure not in without)
    config.update(_arguments(subset_size))


def while_training(
    pictures: ConfigDict,
    measure: str = "frechet",
    num_images: int = 10_000,
    subset_size: int = 1000,
) -> dict:
    """`config.evaluation_metric`: a measure of drawn images; Azizi et al. choose by FID-10K.

    It is off. --config.evaluation_metric.every=STEPS turns it on, and then
    --config.best.metric=sampled_fid keeps the best checkpoint. It samples in the way of `pictures`
    and draws `num_images`, equally many of each class.
    """
    sampling = {name: value for name, value in pictures.items() if name != "count"}
    return dict(
        every=0,  # steps
        measure=measure,
        num_images=num_images,
        batch_size=256,
        extractor=dict(name="inception", rule="tf1", path=""),
        # An npz of statistics; without one the images are compared with the held-out ones.
        reference=dict(statistics=""),
        sampling=sampling,
        **_arguments(subset_size),
    )


def _arguments(subset_size: int) -> dict:
    return dict(
        allow_few_images=False,
        # Chong & Forsyth 2020, with the points of Stein et al. 2023. A tenth of the images, at most
        # 5,000, must be more than the features have dimensions.
        frechet_infinity=dict(num_points=15, seed=0),
        inception_score=dict(rule="torch_fidelity", splits=10, seed=2020),  # torch-fidelity's
        kernel=dict(subsets=100, subset_size=subset_size, seed=2020),  # torch-fidelity's
        sliced=dict(num_directions=1000, seed=2020),
        precision_recall=dict(k=3, comparison="<="),  # Kynkäänniemi et al. 2019
        density_coverage=dict(k=5, comparison="<"),  # Naeem et al. 2020
    )
