"""How the classes of an evaluation set map to a model's, by their names.

A prediction is right where the sets' authors count it as right, among ImageNet's 1,000 classes:

| map | folders | a prediction is |
|---|---|---|
| '' | the model's classes, in its order | the most probable class |
| imagenet_v2 | 0 to 999, which are labels, or WordNet ids | as '' |
| imagenet_sketch | 1,000 WordNet ids | as '' |
| imagenet_r, imagenet_a | 200 WordNet ids | the most probable one of these 200 |
| objectnet | 313 names, of which 113 are classes of ImageNet | the most probable of all 1,000 |

Sources: ImageNet-V2, Recht et al. 2019; Sketch, Wang et al. 2019; R and A, Hendrycks et al. 2021
("The Many Faces of Robustness", "Natural Adversarial Examples"); ObjectNet, Barbu et al. 2019. The
lists in `data/` are facts of the sets: the folders of R and A, and ObjectNet's mapping files.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from importlib import resources

import numpy as np
from jaxtyping import Bool, Int

from input_pipeline.imagenet import wordnet_ids
from launch.errors import InputError

MAPS = ("imagenet_v2", "imagenet_sketch", "imagenet_r", "imagenet_a", "objectnet")
# The answer of a class of the model that is none of the set's.
NO_LABEL = -1
# Its images are marked by a red border of 2 pixels, which the authors' code removes.
_OBJECTNET_BORDER = 2


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """How the classes of a set and of a model belong together."""

    class_names: tuple[str, ...]  # that are evaluated; their positions are the labels
    # Of these classes in the source; others are left out.
    source_labels: Int[np.ndarray, " classes"]
    # The label that each class of the model means, or `NO_LABEL`.
    answers: Int[np.ndarray, " model_classes"]
    competing: Bool[np.ndarray, " model_classes"]  # the prediction is the most probable of these
    border: int = 0  # pixels that images lose on each side

    @property
    def num_model_classes(self) -> int:
        """How many classes the model must have."""
        return len(self.answers)


def identity(class_names: Sequence[str]) -> LabelMap:
    """The map of a set whose classes are the model's."""
    labels = np.arange(len(class_names), dtype=np.int32)
    return LabelMap(tuple(class_names), labels, labels, np.ones(len(labels), bool))


def resolve(name: str, class_names: Sequence[str], partial: bool = False) -> LabelMap:
    """The label map `name`, '' or one of `MAPS`, of a set with these classes on disk.

    With `partial` some classes may be missing; those there still compete with all.

    Raises:
        InputError: there is no such map, or the classes are not those of the set.
    """
    if not name:
        return identity(class_names)
    if name not in MAPS:
        raise InputError(f"label_map must be one of '', {', '.join(map(repr, MAPS))}, got {name!r}")
    # 1. Compare the folders on disk with those that the map knows.
    folder_labels = _labels(name, class_names)
    missing = [folder for folder in folder_labels if folder not in set(class_names)]
    unknown = [folder for folder in class_names if folder not in folder_labels]
    if name == "objectnet":
        unknown = []  # its other 200 classes are not in ImageNet
    if len(missing) == len(folder_labels) or unknown or (missing and not partial):
        difference = f"has {unknown[0]!r}" if unknown else f"lacks {missing[0]!r}"
        first = ", ".join([*list(folder_labels)[:2], "..."])
        raise InputError(
            f"label_map={name!r} needs {len(folder_labels)} classes, {first}, but the set "
            f"{difference}; unpack the whole set, or choose another label_map"
        )
    # 2. Number the set's classes, and say which class of the model means which. In ObjectNet up to
    # three mean one: a chair may be a barber, folding or rocking chair.
    kept = [label for label, folder in enumerate(class_names) if folder in folder_labels]
    answers = np.full(len(wordnet_ids()), NO_LABEL, np.int32)
    for label, source_label in enumerate(kept):
        answers[list(folder_labels[class_names[source_label]])] = label
    # 3. The authors' code of R and A looks at 200 outputs; ObjectNet's at all 1,000, where a
    # prediction outside its 113 classes is wrong.
    competing = np.ones(len(answers), bool)
    if name != "objectnet":
        competing[:] = False
        competing[[label for labels in folder_labels.values() for label in labels]] = True
    names = tuple(class_names[source_label] for source_label in kept)
    border = _OBJECTNET_BORDER if name == "objectnet" else 0
    return LabelMap(names, np.array(kept, np.int32), answers, competing, border)


def _labels(name: str, class_names: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """The labels of ImageNet that are right for images of each folder."""
    number = {wnid: label for label, wnid in enumerate(wordnet_ids())}
    if name == "imagenet_v2" and all(folder.isdecimal() for folder in class_names):
        # By name, since sorting as text puts folder 10 before 2.
        return {str(label): (label,) for label in range(len(number))}
    if name in ("imagenet_v2", "imagenet_sketch"):
        return {wnid: (label,) for wnid, label in number.items()}
    table = wnid_table(f"{name}_wnids.txt")
    return {folder: tuple(number[wnid] for wnid in wnids) for folder, wnids in table.items()}


@functools.cache
def wnid_table(file: str) -> dict[str, tuple[str, ...]]:
    """Folder -> WordNet ids; a folder alone in its line is named by its id."""
    text = (resources.files("classifiers") / "data" / file).read_text()
    rows = (line.split() for line in text.splitlines())
    return {folder: tuple(wnids) or (folder,) for folder, *wnids in rows}
