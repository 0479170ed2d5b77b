"""Results of a study, with the numbers of a paper."""

from classifiers.studies import results

# Azizi et al. 2023, table 3: top-1 for real only, synthetic only, both.
TABLE_3 = {
    "ResNet-50": (76.39, 69.24, 78.17),
    "ResNet-101": (78.15, 71.31, 79.74),
    "ResNet-152": (78.59, 72.38, 80.15),
    "ResNet-RS-50": (79.10, 70.72, 79.97),
    "ResNet-RS-101": (80.11, 72.73, 80.89),
    "ResNet-RS-101 at 190": (81.29, 73.63, 81.80),
    "ResNet-RS-152": (82.81, 74.46, 83.10),
    "ViT-S/16": (79.89, 71.88, 81.00),
    "DeiT-S": (78.97, 72.26, 80.49),
    "DeiT-B": (81.79, 74.55, 82.84),
    "DeiT-B at 384": (83.16, 75.45, 83.75),
    "DeiT-L": (82.22, 74.60, 83.05),
}


def arms_of(accuracies, **fields):
    """The output of `read_arms` by model, for accuracies by name of the arm."""
    arms = {}
    for model, by_name in accuracies.items():
        real = by_name["real"]
        arms[model] = {
            name: {
                "accuracies": list(values),
                "copies": 0 if name == "real" else int(name.split("_")[1][:-1]),
                "num_real": 30 * (not name.startswith("synthetic")),
                "num_synthetic": 0 if name == "real" else 30 * int(name.split("_")[1][:-1]),
                **results.against(values, real),
                **fields,
            }
            for name, values in by_name.items()
        }
    return arms


def of_the_paper():
    return arms_of(
        {
            model: {"real": [real / 100], "synthetic_1x": [fake / 100],
                    "real+synthetic_1x": [both / 100]}
            for model, (real, fake, both) in TABLE_3.items()
        }
    )  # fmt: skip
