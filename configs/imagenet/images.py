"""Where ImageNet's real images are, for all its configs."""

DATA = "data/imagenet"
# Drawn with `runlocal` if there are no images: as many per class as ImageNet has, at 64 px.
STAND_INS = {
    "train": dict(class_names="imagenet", images=1300, size=64, seed=0),
    "val": dict(class_names="imagenet", images=50, size=64, seed=1),
}


def real_images(args: dict, part: str) -> dict:
    """The source of 'train' or 'val': TFDS's imagenet2012 where `tfds` names it, else `data`.

    TFDS has the same images, and the same labels: the WordNet ids in order.
    """
    if args["tfds"]:
        split = {"train": "train", "val": "validation"}[part]
        return dict(name="tfds", path=args["tfds"], split=split)
    source = dict(name="image_folder", path=args["data"], root=args[part])
    if args["runlocal"] and args["data"] == DATA:
        source["standin"] = STAND_INS[part]
    return source
