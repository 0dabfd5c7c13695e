"""TensorFlow's image operations in tf.data, into TFRecords."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from converters import Job

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _encoded(data: Any, job: Job) -> Any:
    import tensorflow as tf

    pixels = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
    shape = tf.shape(pixels)[:2]
    scale = job.size / tf.cast(tf.reduce_min(shape), tf.float64)
    sides = tf.maximum(tf.cast(tf.round(tf.cast(shape, tf.float64) * scale), tf.int32), job.size)
    pixels = tf.image.resize(pixels, sides, method="area")
    top, left = (sides[0] - job.size) // 2, (sides[1] - job.size) // 2
    square = pixels[top : top + job.size, left : left + job.size]
    return tf.io.encode_jpeg(tf.saturate_cast(tf.round(square), tf.uint8), quality=job.quality)


def picture(data: bytes, job: Job) -> bytes:
    """One JPEG."""
    encoded: bytes = _encoded(data, job).numpy()
    return encoded


def convert(job: Job) -> None:
    """One TFRecord file."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(job.workers)
    Path(job.out).mkdir(parents=True)
    files = tf.data.Dataset.from_tensor_slices([str(path) for path, _ in job.files()])
    pictures = files.map(lambda path: _encoded(tf.io.read_file(path), job), num_parallel_calls=job.workers)
    with tf.io.TFRecordWriter(f"{job.out}/data.tfrecord") as writer:
        for data in pictures.prefetch(8).as_numpy_iterator():
            writer.write(data)
