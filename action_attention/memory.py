"""Memory that a model needs at least, told before anything of it is made."""

import math
import random
import resource
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import keras
import psutil
import tensorflow as tf

from action_attention.errors import UserError
from action_attention.models.base import ActionModel, example_inputs
from action_attention.registry import Config

TRAINED = 5  # times that training holds the weights: they, the best ones, gradients, Adam's two means
BATCHES = 6  # batches in float16: in use, being made, and four that `Clips` reads ahead
TENSORFLOW_BYTES = 1 << 30  # of a limited address space, for what TensorFlow's threads reserve
Shapes = list[tuple[int, ...]]


def weight_shapes(
    build: Callable[[], ActionModel], cube_shape: tuple[int, ...], flow_shape: tuple[int, ...] | None = None
) -> Shapes:
    """Shapes of all weights that a model for clips of such cubes, `(H, W, D)`, would have; none of them is made.

    In a thread of its own, since Keras keeps by thread which variables it has not made yet, and how often it gave a
    name. What is drawn at random afterwards does not depend on this.
    """

    def trace() -> Shapes:
        with keras.StatelessScope(initialize_variables=False):
            model = build()
            model(example_inputs(model.settings, cube_shape, flow_shape, keras.KerasTensor))
            return [tuple(variable.shape) for variable in model.weights]

    state = random.getstate()
    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(trace).result()
    finally:
        random.setstate(state)


def check_memory(
    config: Config, weights: Shapes, cube_shapes: Sequence[tuple[int, ...]], clips: int, *, trained: bool
) -> None:
    """Raises UserError if there is less memory than a model, and a batch of at most so many clips, take at least.

    Weights are float32, held once, or `TRAINED` times. Each frame of a batch has its cubes, `BATCHES` times in float16
    and once in float32, and if `trained` what each kernel makes of it is kept for the gradient: a number for each
    column, of a convolution at each location.
    """
    training, locations = config.training, math.prod(cube_shapes[0][:2])
    kept = sum(shape[-1] * (locations if len(shape) > 2 else 1) for shape in weights if len(shape) > 1)
    clips = min(clips, training.batch_size)
    frame = sum(map(math.prod, cube_shapes)) * (2 * BATCHES + 4) + 4 * kept * trained
    for_weights = 4 * sum(map(math.prod, weights)) * (TRAINED if trained else 1)
    for_batch, free = clips * training.clip_length * frame, free_memory()
    if for_weights + for_batch > free:
        named = ("lstm_units", "cells", "clip_length", "batch_size")
        settings = ", ".join(f"{name}={value}" for name, value in config.flat().items() if name in named)
        cubes = " and ".join(map(str, cube_shapes))
        raise UserError(
            f"{config.model} with {settings} would need at least {for_weights / 1e9:.1f} GB for its weights and "
            f"{for_batch / 1e9:.1f} GB for a batch of {clips} clips of cubes {cubes}, {free / 1e9:.1f} GB are free; "
            "make these settings smaller"
        )


def check_address_space() -> None:
    """Raises UserError if it is too small for TensorFlow, which would crash in its own threads or never end."""
    if (left := _address_space()) < TENSORFLOW_BYTES:
        raise UserError(
            f"this process's memory limit (ulimit -v) leaves {left / 1e9:.1f} GB, and TensorFlow's threads take "
            f"{TENSORFLOW_BYTES / 1e9:.1f} GB; raise it"
        )


def free_memory() -> int:
    """Bytes that this process may still take for models and batches."""
    return max(0, int(min(psutil.virtual_memory().available, _address_space() - TENSORFLOW_BYTES)))


def _address_space() -> float:
    """Bytes of it that are left."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit - psutil.Process().memory_info().vms


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Raises UserError where memory runs out."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise UserError(
            f"memory ran out while {what}; end other programs, or make --batch_size, --clip_length or --lstm_units "
            "smaller"
        ) from error
