"""tf.data: TFRecord files, parallel `map`, batches as NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from peers.task import Task

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # this process runs nothing else
import tensorflow as tf

_FILES = 8
_SHUFFLE_SAMPLES = 1000


def convert(task: Task) -> None:
    """Write the files; raw records are stored as their pixels alone."""
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    writers = [tf.io.TFRecordWriter(f"{task.folder}/{number:02d}.tfrecord") for number in range(_FILES)]
    pixel_bytes = 3 * task.image_size**2
    for number, (data, label) in enumerate(task.records()):
        image = data[len(data) - pixel_bytes :] if task.encoding == "raw" else data
        fields = {
            "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        }
        writers[number % _FILES].write(tf.train.Example(features=tf.train.Features(feature=fields)).SerializeToString())
    for writer in writers:
        writer.close()


def batches(task: Task, variant: str) -> Iterator[NDArray[Any]]:
    """Without end."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = task.num_threads
    options.deterministic = False
    files = tf.data.Dataset.from_tensor_slices(sorted(map(str, Path(task.folder).glob("*.tfrecord")))).shuffle(_FILES)
    dataset = (
        files.interleave(tf.data.TFRecordDataset, num_parallel_calls=tf.data.AUTOTUNE)
        .shuffle(_SHUFFLE_SAMPLES)
        .repeat()
        .map(_Parser(task), num_parallel_calls=tf.data.AUTOTUNE)
        .batch(task.batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )
    for images, _ in dataset.as_numpy_iterator():
        yield images


class _Parser:
    """One serialised example -> view and label, as a graph."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._fields = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
        self._mean, self._std = tf.constant(task.channel_mean), tf.constant(task.channel_std)

    def __call__(self, serialized: Any) -> tuple[Any, Any]:
        task, size = self._task, self._task.crop_size
        example = tf.io.parse_single_example(serialized, self._fields)
        if task.encoding == "raw":
            side = task.image_size
            pixels = tf.reshape(tf.io.decode_raw(example["image"], tf.uint8), (side, side, 3))
        else:
            pixels = tf.io.decode_jpeg(example["image"], 3, dct_method="INTEGER_ACCURATE")
        view = tf.image.random_flip_left_right(tf.image.random_crop(pixels, (size, size, 3)))
        if task.form == "float32":
            view = tf.transpose((tf.cast(view, tf.float32) - self._mean) / self._std, (2, 0, 1))
        return view, example["label"]
