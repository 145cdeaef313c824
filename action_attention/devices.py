"""Training on several devices of one machine: what they learn from a batch is what one device learns from it.

`tf.distribute.MirroredStrategy` keeps the weights on every device, and each takes an equal share of every batch. By
itself Keras would average over what a device happens to get; here sums over clips are divided by the clips of the whole
batch, however many of them a device has.
"""

from functools import cache
from typing import Any

import keras
import tensorflow as tf

from action_attention.errors import UserError
from action_attention.loss import PADDING
from action_attention.models import ActionModel


def find_devices(asked: str) -> list[str]:
    """The names of the devices that `asked` is, a number or `all`: GPUs where there are any, else CPUs; none for one.

    Raises UserError if it is neither, there are fewer, or Keras does not run on TensorFlow.
    """
    if asked != "all" and not (asked.isascii() and asked.isdigit() and int(asked)):
        raise UserError(f"--devices={asked} must be a number from 1, or all")
    if asked == "1":
        return []
    if (backend := keras.backend.backend()) != "tensorflow":
        raise UserError(f"--devices={asked} is for Keras on TensorFlow; on {backend} training takes --devices=1")
    kind, found = "GPU", tf.config.list_physical_devices("GPU")
    if not found:
        kind, found = "CPU", tf.config.list_logical_devices("CPU")
    there = [f"{kind}:{number}" for number in range(len(found))]
    count = len(there) if asked == "all" else int(asked)
    if count > len(there):
        raise UserError(f"--devices={asked}: this machine has {len(there)} ({', '.join(there)}); take fewer, or all")
    return there[:count] if count > 1 else []


@cache  # a second strategy of one process would count its reductions from the same number, and TensorFlow mix them up
def strategy_on(*devices: str) -> tf.distribute.Strategy:
    """What keeps the weights on all of these devices alike."""
    return tf.distribute.MirroredStrategy(devices)


def equal_shares(batches: tf.data.Dataset, devices: int) -> tf.data.Dataset:
    """Batches of `Clips` with as many clips for each device, and 1 for each clip, 0 for those that were added.

    The last clip is repeated, with the label `PADDING` in all frames, until the number of clips is a multiple of
    `devices`. Masks become float32.
    """

    def fill(inputs: dict[str, tf.Tensor], targets: dict[str, tf.Tensor]) -> tuple[Any, ...]:
        clips = tf.shape(inputs["mask"])[0]
        rows = tf.range(-(-clips // devices) * devices)
        inputs = {name: tf.gather(values, tf.minimum(rows, clips - 1)) for name, values in inputs.items()}
        labels = tf.gather(targets["logits"], tf.minimum(rows, clips - 1))
        # Keras builds a model by the mean of the first batch over the devices, which bools do not have
        mask = tf.cast(inputs["mask"], tf.float32)
        labels = tf.where(rows[:, None] < clips, labels, PADDING)
        return {**inputs, "mask": mask}, {"logits": labels, "attention": mask}, tf.cast(rows < clips, tf.float32)

    return batches.map(fill)


class OnDevices(keras.Model):
    """Fits a model to batches of `equal_shares` on the devices of a strategy, in whose scope it and the model are made.

    Args:
        model: it is trained.
        alone: another one like it, made outside of the scope, with which one device predicts.
    """

    def __init__(self, model: ActionModel, alone: ActionModel):
        super().__init__(name=model.name)
        self.model, self._alone = model, lambda: alone  # as an attribute its weights would be this one's too
        alone.jit_compile = False  # as of what `compile_model` compiles
        self.built = True

    def call(self, inputs: dict[str, Any], training: bool | None = None) -> dict[str, Any]:
        return self.model({**inputs, "mask": inputs["mask"] > 0}, training=training)

    def train_step(self, data: tuple[Any, ...]) -> dict[str, Any]:
        inputs, targets, real = data
        replica = tf.distribute.get_replica_context()
        devices, clips = replica.num_replicas_in_sync, replica.all_reduce("sum", tf.reduce_sum(real))
        # Keras divides by the clips of this device, added ones too, and by the devices, which hold as many
        counts = real * devices * tf.cast(tf.size(real), real.dtype) / clips
        with tf.GradientTape() as tape:
            outputs = self._call_by_own_seeds(inputs, replica.replica_id_in_sync_group)
            loss = self.compute_loss(inputs, targets, outputs, counts)
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True)
        )
        for metric in self.metrics:
            if metric.name == "loss":  # the sum over devices is the batch's, which weighs as many as it has clips
                metric.update_state(loss * devices, sample_weight=clips / devices)
        return self.compute_metrics(inputs, targets, outputs, counts)

    def _call_by_own_seeds(self, inputs: dict[str, Any], device: Any) -> dict[str, Any]:
        """What a call in training gives, with other dropout on every device; on the first it is that of one device."""
        weights = {id(weight) for weight in self.model.weights}
        changing = self.model.non_trainable_variables
        offsets = {id(seed): tf.cast([device, 0], seed.dtype) for seed in changing if id(seed) not in weights}
        own = [(seed, seed.value + offsets[id(seed)]) for seed in changing if id(seed) in offsets]
        with keras.StatelessScope(own) as scope:
            outputs = self(inputs, training=True)
        for variable in changing:
            if (value := scope.get_current_value(variable)) is not None:
                variable.assign(value - offsets.get(id(variable), 0))
        return outputs

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        alone = self._alone()
        alone.set_weights(self.get_weights())
        return alone.predict(*args, **kwargs)
