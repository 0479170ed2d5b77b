"""Where the real images of ImageNet are, for all its configs."""


def real_images(args: dict, part: str) -> dict:
    """The source of 'train' or 'val': TFDS's imagenet2012 where `tfds` names it, else `data`.

    TFDS has the same images, and the same labels: the WordNet ids in order.
    """
    if args["tfds"]:
        split = {"train": "train", "val": "validation"}[part]
        return dict(name="tfds", path=args["tfds"], split=split)
    return dict(name="image_folder", path=args["data"], root=args[part])
