"""The LSTM's cell in a loop over frames, whose kernels have gradients of one product each."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Step = Callable[[Any, list], tuple[Any, list]]


class LSTMCell(keras.layers.LSTMCell):
    """Keras' own, with a cheaper way to train it in an unrolled loop (`over`)."""

    def over(self, frames: int, rows: Any, training: bool | None) -> Step:
        """The cell, to be called for each of so many frames in turn: inputs `(rows, D)` and states to h and states.

        Backpropagation through the loop makes a matrix of the kernel's size for each frame and adds them all. Training
        on TensorFlow has one product of all frames in their place; elsewhere this is the cell itself.
        """
        if not training or keras.backend.backend() != "tensorflow":
            return self
        from_inputs, from_hidden = (
            product_of_each(ops.cast(kernel, self.compute_dtype), frames, rows)
            for kernel in (self.kernel, self.recurrent_kernel)
        )
        bias = ops.cast(self.bias, self.compute_dtype)

        def step(inputs: Any, states: list) -> tuple[Any, list]:
            hidden, cell = states
            gates = ops.split(from_inputs(inputs) + from_hidden(hidden) + bias, 4, axis=-1)
            take, keep, show = (self.recurrent_activation(gates[n]) for n in (0, 1, 3))
            cell = keep * cell + take * self.activation(gates[2])
            hidden = show * self.activation(cell)
            return hidden, [hidden, cell]

        return step


class ForgetfulLSTMCell(LSTMCell):
    """Carries no cell state: it is zero before every frame. The tutorial's defect, as an ablation."""

    def over(self, frames: int, rows: Any, training: bool | None) -> Step:
        step = super().over(frames, rows, training)
        return lambda inputs, states: step(inputs, [states[0], ops.zeros_like(states[1])])


def product_of_each(kernel: Any, frames: int, rows: Any) -> Callable[[Any], Any]:
    """`x_t @ kernel` for x_t `(rows, inputs)` of one frame after the other, in TensorFlow.

        dL/dkernel = sum_t x_t^T dL/dy_t = [x_1; ...; x_T]^T [dL/dy_1; ...; dL/dy_T]

    The kernel in the products takes no gradient. It comes from zeros that are added to them, whose gradient is that of
    all y_t at once.
    """
    import tensorflow as tf  # noqa: PLC0415 - Keras may run on another backend

    seen, fixed = list[Any](), tf.stop_gradient(kernel)

    @tf.custom_gradient
    def zeros(kernel: Any) -> tuple[Any, Callable]:
        def gradient(upstream: Any) -> Any:
            return tf.einsum("tri,tro->io", tf.stack(seen), upstream)

        return tf.zeros((frames, rows, kernel.shape[1]), kernel.dtype), gradient

    nothing = iter(tf.unstack(zeros(kernel), frames))

    def product(x: Any) -> Any:
        seen.append(x)
        return tf.matmul(x, fixed) + next(nothing)

    return product
