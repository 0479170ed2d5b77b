"""The peer of tests.benchmarks.input that runs in an interpreter with TensorFlow.

python input_tensorflow.py FOLDER BATCHES    # each line read, 0 or 1 (RandAugment), is a case

Answers each line with the CPU seconds of so many batches. It imports nothing of the project.
"""

import glob
import importlib
import math
import sys
import time

tf = importlib.import_module("tensorflow")  # by name: nothing else in the project uses it

SIZE, BATCH, LAYERS, LEVEL, FILL = 224, 32, 2, 1.0, 128.0


def clip(values):
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


def blend(low, image, factor):
    low, image = tf.cast(low, tf.float32), tf.cast(image, tf.float32)
    return clip(low + factor * (image - low))


def grey(image):
    return tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))


def autocontrast(image):
    values = tf.cast(image, tf.float32)
    low, high = tf.reduce_min(values, (0, 1)), tf.reduce_max(values, (0, 1))
    scale = tf.where(high > low, 255.0 / tf.maximum(high - low, 1.0), 1.0)
    return clip((values - tf.where(high > low, low, 0.0)) * scale)


def equalize_channel(plane):
    counts = tf.math.bincount(tf.cast(tf.reshape(plane, [-1]), tf.int32), minlength=256)
    step = (tf.reduce_sum(counts) - counts[tf.cast(tf.reduce_max(plane), tf.int32)]) // 255
    table = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.cast(tf.clip_by_value(table, 0, 255), tf.uint8)
    return tf.cond(step > 0, lambda: tf.gather(table, tf.cast(plane, tf.int32)), lambda: plane)


def equalize(image):
    return tf.stack([equalize_channel(image[..., c]) for c in range(3)], -1)


def contrast(image, factor):
    mean = tf.reduce_mean(tf.cast(tf.image.rgb_to_grayscale(image), tf.float32))
    return blend(tf.floor(mean + 0.5), image, factor)


def sharpness(image, factor):
    kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32)[..., None, None] / 13
    values = tf.cast(image, tf.float32)[None]
    smooth = tf.nn.depthwise_conv2d(values, tf.tile(kernel, (1, 1, 3, 1)), [1, 1, 1, 1], "VALID")
    inner = tf.pad(tf.ones((1, SIZE - 2, SIZE - 2, 3), tf.bool), [(0, 0), (1, 1), (1, 1), (0, 0)])
    smooth = tf.pad(tf.round(smooth), [(0, 0), (1, 1), (1, 1), (0, 0)])
    return blend(tf.where(inner, smooth, values)[0], image, factor)


def affine(image, *matrix):
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.cast([[*matrix, 0.0, 0.0]], tf.float32),
        output_shape=[SIZE, SIZE],
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=FILL,
    )[0]


def rotate(image, degrees):
    cos, sin, middle = tf.cos(degrees * math.pi / 180), tf.sin(degrees * math.pi / 180), SIZE / 2
    start = (middle - cos * middle + sin * middle, middle - sin * middle - cos * middle)
    return affine(image, cos, -sin, start[0], sin, cos, start[1])


def operations(image, sign):
    """The 15 operations of the set at magnitude 10; `sign` is 1.0 or -1.0."""
    one, zero, factor = 1.0, 0.0, 0.1 + 1.8 * LEVEL
    bits, threshold, amount = int(4 * LEVEL), int(256 * LEVEL), int(110 * LEVEL)
    shear, shift = sign * 0.3 * LEVEL, sign * 0.45 * LEVEL * SIZE
    values = tf.cast(image, tf.int32)
    return [
        lambda: autocontrast(image),
        lambda: equalize(image),
        lambda: 255 - image,
        lambda: rotate(image, sign * 30.0 * LEVEL),
        lambda: tf.bitwise.bitwise_and(image, tf.constant(256 - (1 << (8 - bits)), tf.uint8)),
        lambda: tf.where(values < threshold, image, 255 - image),
        lambda: tf.where(values < 128, clip(tf.cast(values + amount, tf.float32)), image),
        lambda: blend(grey(image), image, factor),
        lambda: contrast(image, factor),
        lambda: blend(tf.zeros_like(image), image, factor),
        lambda: sharpness(image, factor),
        lambda: affine(image, one, shear, zero, zero, one, zero),
        lambda: affine(image, one, zero, zero, shear, one, zero),
        lambda: affine(image, one, zero, shift, zero, one, zero),
        lambda: affine(image, one, zero, zero, zero, one, shift),
    ]


def load(path, rand):
    data = tf.io.read_file(path)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(data),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    box = tf.stack([begin[0], begin[1], size[0], size[1]])
    image = tf.io.decode_and_crop_jpeg(data, box, channels=3)
    image = tf.image.random_flip_left_right(clip(tf.image.resize(image, (SIZE, SIZE))))
    for _ in range(LAYERS * rand):
        sign = tf.where(tf.random.uniform([]) < 0.5, 1.0, -1.0)
        choices = operations(image, sign)
        which = tf.random.uniform([], maxval=len(choices), dtype=tf.int32)
        image = tf.ensure_shape(tf.switch_case(which, choices), (SIZE, SIZE, 3))
    return image


def main():
    folder, batches = sys.argv[1], int(sys.argv[2])
    paths = sorted(glob.glob(f"{folder}/*/*"))
    runs = []
    for rand in (False, True):
        data = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
        data = data.map(lambda path, rand=rand: load(path, rand), tf.data.AUTOTUNE)
        data = data.batch(BATCH).take(batches).prefetch(tf.data.AUTOTUNE)
        runs.append(data)
    for line in sys.stdin:
        start = time.process_time()
        for batch in runs[int(line)]:
            assert batch.shape == (BATCH, SIZE, SIZE, 3) and batch.dtype == tf.uint8
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
