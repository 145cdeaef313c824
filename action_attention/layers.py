"""Soft attention and the recurrent layers that carry it. Forward passes use `keras.ops` only, so any backend runs them.

Symbols of the papers: `F` side of the feature cube (7), `D` its channels (512), `T` frames of a clip, `U` units. Each
layer maps features `(B, T, F, F, D)` and the mask of real frames `(B, T)` to hidden states and attention maps
`(B, T, F, F)`; maps of padded frames are zero. What does not depend on the recurrence is computed for all frames before
the loop. The loop over frames is unrolled, so `T` must be static.
"""

import math

import keras
import numpy as np
from keras import ops

POOLINGS = ("attention", "mean", "max")
GLIMPSES = ("whole", "quarters")
INITIAL_STATES = ("zeros", "clip")
ABLATIONS = ("none", "initial", "carry")


def flatten_locations(features):
    """`(B, T, F, F, D)` -> `(B, T, F*F, D)`."""
    batch, frames, height, width, channels = features.shape
    return ops.reshape(features, (-1 if batch is None else batch, frames, height * width, channels))


def sqrt_l2(features):
    """Evens out pool5's heavy-tailed values: 90 % are zero, some 400. `(B, T, F, F, D)` in and out.

    Signed square root, then each frame's cube scaled to the L2 norm sqrt(F*F*D), so that the mean square of its values
    is 1 (power and L2 normalisation, Perronnin et al. 2010, ECCV, for a layer that wants values near 1).
    """
    rooted = ops.sign(features) * ops.sqrt(ops.abs(features))
    return rooted * ops.rsqrt(ops.mean(ops.square(rooted), axis=(2, 3, 4), keepdims=True) + 1e-6)


def with_motion(features):
    """Appends how much each cube differs from the one before it: `(B, T, F, F, D)` -> `(B, T, F, F, 2 D)`."""
    difference = ops.abs(features[:, 1:] - features[:, :-1])
    return ops.concatenate([features, ops.pad(difference, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))], axis=-1)


def clip_mean(frame_vectors, mask):
    """Mean of the real frames of each clip: `(B, T, D)`, `(B, T)` -> `(B, D)`."""
    weights = ops.cast(mask, frame_vectors.dtype)
    return ops.sum(frame_vectors * weights[..., None], axis=1) / ops.sum(weights, axis=1, keepdims=True)


def quarters(side):
    """`(5, F*F)` weights that tell where a glimpse comes from: the whole map, and its four quarters.

    Quarters overlap where F is odd. Each row has mean 1, so that a quarter's share of a glimpse is as large as the
    whole's (spatial pyramid, Lazebnik et al. 2006, CVPR).
    """
    size = (side + 1) // 2
    regions = np.zeros((5, side, side), "float32")
    regions[0] = 1
    for region, (row, column) in zip(regions[1:], np.ndindex(2, 2), strict=True):
        region[row * (side - size) :, column * (side - size) :][:size, :size] = side * side / size**2
    return regions.reshape(5, -1)


def neighbourhoods(height, width, size=3):
    """`(F*F * size*size, F*F)` matrix of 0 and 1: row `(p, k)` picks the location under tap k of a kernel centred on p.

    Rows of taps that fall off the map are zero, as same padding has it.
    """
    rows, columns = np.divmod(np.arange(height * width), width)
    taps = np.arange(size) - size // 2
    down = rows[None, :] - rows[:, None]
    right = columns[None, :] - columns[:, None]
    picked = (down[:, None, None, :] == taps[:, None, None]) & (right[:, None, None, :] == taps[None, :, None])
    return picked.reshape(-1, height * width).astype("float32")


def maps(locations, mask, side):
    """`(B, T, F*F)` weights of locations as float32 maps `(B, T, F, F)`, zero where a frame is padding."""
    locations = ops.cast(locations, "float32") * ops.cast(mask, "float32")[..., None]
    return ops.reshape(locations, (-1, locations.shape[1], side, side))


@keras.saving.register_keras_serializable("action_attention")
class AttentionLSTM(keras.layers.Layer):
    """LSTM over glimpses of the feature cube (Sharma et al. 2016, arXiv 1511.04119, eq. 1-6).

        s_t = mlp3(tanh(mlp1(mean_i X_{t,i}) + mlp2(h_{t-1})))
        c_t = softmax(s_t);  z_t = sum_i c_{t,i} X_{t,i};  h_t, cell_t = LSTM(z_t, (h_{t-1}, cell_{t-1}))
        h_0 = mlp_h(mean_t mean_i X_{t,i});  cell_0 = mlp_c(the same)

    A glimpse of `quarters` keeps where it comes from: z_t = mlp_z of five sums, over the whole map and over each of its
    quarters (`quarters`).

    With several cells each reads the hidden state of the one below, has MLPs of its own for its initial states, and
    h_{t-1} above is that of the uppermost.

    Args:
        units: U, of the LSTM and of the hidden layer that scores.
        dropout: rate at the input of every fully connected layer (not at the LSTM's own kernels) and between cells
            (Zaremba et al. 2014, arXiv 1409.2329). Within the recurrence the dropped units are drawn for each frame,
            those of mlp_z's input for each clip.
        weight_decay: omega; adds `omega * sum |w|^2` over all kernels.
        cells: LSTM cells on top of each other.
        pooling: how a frame's locations become `z_t`: `attention` as above; the controls `mean` (uniform weights) and
            `max` (per channel; its "attention" is the share of channels whose maximum lies at a location).
        ablate: what is taken away to see what it is worth: `initial`, the MLPs of h_0 and cell_0, which are zero then;
            `carry`, the cell state, which is zero before every frame then, as in the tutorial's code.
        glimpse: `whole`, or `quarters` (not with `max`).

    Call arguments:
        features: `(B, T, F, F, D)`.
        mask: `(B, T)`, true for real frames; they come first.

    Returns:
        hidden states `(B, T, U)` and attention `(B, T, F, F)`.
    """

    def __init__(
        self,
        units,
        dropout=0.5,
        weight_decay=0.0,
        pooling="attention",
        cells=1,
        ablate="none",
        glimpse="whole",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}. Received: pooling={pooling!r}")
        if ablate not in ABLATIONS:
            raise ValueError(f"ablate must be one of {ABLATIONS}. Received: ablate={ablate!r}")
        if glimpse not in GLIMPSES or (glimpse == "quarters" and pooling == "max"):
            raise ValueError(f"glimpse must be one of {GLIMPSES}, and whole with max. Received: glimpse={glimpse!r}")
        self.units, self.rate, self.weight_decay, self.pooling = units, dropout, weight_decay, pooling
        self.cells, self.ablate, self.glimpse = cells, ablate, glimpse
        self.decay = keras.regularizers.L2(weight_decay) if weight_decay else None
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.initial_hidden = self._dense(units, "mlp_h", activation="tanh")
        self.initial_cell = self._dense(units, "mlp_c", activation="tanh")
        self.lstm = self._lstm("lstm")
        # apart from the first cell's, whose names stand in saved models
        upper = range(2, cells + 1)
        self.upper_hidden = [self._dense(units, f"mlp_h{n}", activation="tanh") for n in upper]
        self.upper_cell = [self._dense(units, f"mlp_c{n}", activation="tanh") for n in upper]
        self.upper_lstm = [self._lstm(f"lstm{n}") for n in upper]

    def _lstm(self, name):
        decay = {"kernel_regularizer": self.decay, "recurrent_regularizer": self.decay}
        return keras.layers.LSTMCell(self.units, **decay, dtype=self.dtype_policy, name=name)

    def _dense(self, units, name, **kwargs):
        return keras.layers.Dense(units, kernel_regularizer=self.decay, name=name, dtype=self.dtype_policy, **kwargs)

    def build(self, features_shape, mask_shape=None):
        _, _, height, width, channels = features_shape
        for layer in (self.initial_hidden, self.initial_cell, *self.upper_hidden, *self.upper_cell):
            layer.build((None, channels))
        for layer in self.upper_lstm:
            layer.build((None, self.units))
        if self.glimpse == "quarters":
            self.regions = quarters(height)
            self.from_regions = self._dense(self.units, "mlp_z")
            self.from_regions.build((None, len(self.regions) * channels))
        self.lstm.build((None, self.units if self.glimpse == "quarters" else channels))
        if self.pooling == "attention":
            self.from_frame = self._dense(self.units, "mlp1")
            self.from_hidden = self._dense(self.units, "mlp2", use_bias=False)
            self.to_scores = self._dense(height * width, "mlp3")
            self.from_frame.build((None, channels))
            self.from_hidden.build((None, self.units))
            self.to_scores.build((None, self.units))
        self.built = True

    def call(self, features, mask, training=None):
        side, cube = features.shape[2], flatten_locations(features)
        frame_means = ops.mean(cube, axis=2)
        clip_means = clip_mean(frame_means, mask)
        initial = zip((self.initial_hidden, *self.upper_hidden), (self.initial_cell, *self.upper_cell), strict=True)
        states = [[mlp(self.dropout(clip_means, training=training)) for mlp in of_cell] for of_cell in initial]
        if self.ablate == "initial":
            states = [[ops.zeros_like(state) for state in of_cell] for of_cell in states]
        hidden = states[-1][0]
        if self.pooling == "attention":
            from_frames = self.from_frame(self.dropout(frame_means, training=training))
            # dropout inside the recurrence, drawn for all frames at once: (B, T, U), ones when not training
            keep_hidden = self.dropout(ops.ones_like(from_frames), training=training)
            keep_mixed = self.dropout(ops.ones_like(from_frames), training=training)
        elif self.pooling == "mean":
            glimpses, weights = frame_means, ops.full_like(cube[..., 0], 1 / cube.shape[2])
        else:
            glimpses = ops.max(cube, axis=2)
            at_maximum = ops.cast(ops.equal(cube, glimpses[:, :, None]), cube.dtype)
            weights = ops.mean(at_maximum / ops.sum(at_maximum, axis=2, keepdims=True), axis=3)
        if self.glimpse == "quarters":
            kept = self.dropout(ops.ones_like(cube[:, 0, : len(self.regions)]), training=training)  # (B, 5, D)
        hiddens, attention = [], []

        def look(weights, frame):
            """Weights `(B, F*F)` and a frame's cube `(B, F*F, D)` -> the glimpse, `(B, D)` or `(B, U)`."""
            if self.glimpse == "whole":
                return ops.matmul(weights[:, None], frame)[:, 0]
            parts = ops.matmul(weights[:, None] * ops.cast(self.regions, frame.dtype), frame) * kept
            return self.from_regions(ops.reshape(parts, (-1, math.prod(parts.shape[1:]))))

        for t in range(cube.shape[1]):
            if self.pooling == "attention":
                mixed = ops.tanh(from_frames[:, t] + self.from_hidden(hidden * keep_hidden[:, t]))
                attention.append(ops.softmax(self.to_scores(mixed * keep_mixed[:, t])))
                glimpse = look(attention[-1], cube[:, t])
            elif self.glimpse == "quarters":
                glimpse = look(weights[:, t], cube[:, t])
            else:
                glimpse = glimpses[:, t]
            if self.ablate == "carry":
                states = [[hidden_, ops.zeros_like(cell)] for hidden_, cell in states]
            hidden, states[0] = self.lstm(glimpse, states[0])
            for n, lstm in enumerate(self.upper_lstm, 1):
                hidden, states[n] = lstm(self.dropout(hidden, training=training), states[n])
            hiddens.append(hidden)
        weights = ops.stack(attention, axis=1) if attention else weights
        return ops.stack(hiddens, axis=1), maps(weights, mask, side)

    def get_config(self):
        own = {"units": self.units, "dropout": self.rate, "weight_decay": self.weight_decay, "pooling": self.pooling}
        own |= {"cells": self.cells, "ablate": self.ablate, "glimpse": self.glimpse}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("action_attention")
class AttentionConvLSTM(keras.layers.Layer):
    """The same kept convolutional: VideoLSTM's appearance part (Li et al. 2018, arXiv 1607.01794, eq. 8-13).

        s_t = w * tanh(W_x * X_t + W_h * h_{t-1} + b)          1x1 convolutions, a score for each location
        c_t = softmax(s_t) over all locations;  h_t, cell_t = ConvLSTM(c_t X_t, (h_{t-1}, cell_{t-1}))

    Hidden and cell maps start at zero, or, as the convolutional counterpart of ALSTM's MLPs, at 1x1 convolutions of the
    clip's mean cube: tanh(W_h * mean_t X_t) and tanh(W_c * mean_t X_t) for each cell. The recurrence is that of Keras'
    `ConvLSTM2D`, 3x3, same padding, whose cell holds the weights. With several cells each reads the hidden map of the
    one below, and h_{t-1} is the uppermost's.

    Args:
        filters: U, of the ConvLSTM and of the hidden layer that scores.
        weight_decay: omega; adds `omega * sum |w|^2` over all kernels.
        cells: ConvLSTM cells on top of each other.
        initial: where the states start, `zeros` or `clip`.
        rescale: weigh the cube by F*F c_t, whose mean is 1, in place of c_t: uniform attention passes the cube on as it
            is, and there is nothing to gain in mere size from looking at few locations. The maps returned are c_t.
        dropout: rate at the input of the convolutions that make the initial states.

    Call arguments and results as `AttentionLSTM`, hidden maps `(B, T, F, F, U)`.
    """

    def __init__(self, filters, weight_decay=0.0, cells=1, initial="zeros", rescale=False, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        if initial not in INITIAL_STATES:
            raise ValueError(f"initial must be one of {INITIAL_STATES}. Received: initial={initial!r}")
        self.filters, self.weight_decay, self.cells = filters, weight_decay, cells
        self.initial, self.rescale = initial, rescale
        decay = keras.regularizers.L2(weight_decay) if weight_decay else None
        # A Dense layer over the last axis is a 1x1 convolution.
        dense = {"kernel_regularizer": decay, "dtype": self.dtype_policy}
        self.from_frame = keras.layers.Dense(filters, name="conv_x", **dense)
        self.from_hidden = keras.layers.Dense(filters, use_bias=False, name="conv_h", **dense)
        self.to_scores = keras.layers.Dense(1, use_bias=False, name="conv_score", **dense)
        conv = {**dense, "recurrent_regularizer": decay, "padding": "same"}
        self.cell = keras.layers.ConvLSTM2D(filters, 3, **conv).cell
        self.upper = [keras.layers.ConvLSTM2D(filters, 3, **conv).cell for _ in range(1, cells)]
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        count = 2 * cells if initial == "clip" else 0
        self.initial_states = [keras.layers.Dense(filters, "tanh", name=f"initial{n}", **dense) for n in range(count)]

    def build(self, features_shape, mask_shape=None):
        _, _, height, width, channels = features_shape
        self.from_frame.build((None, channels))
        self.from_hidden.build((None, self.filters))
        self.to_scores.build((None, self.filters))
        self.cell.build((None, height, width, channels))
        for cell in self.upper:
            cell.build((None, height, width, self.filters))
        for convolution in self.initial_states:
            convolution.build((None, channels))
        self.built = True

    def call(self, features, mask, training=None):
        (frames, height, width), cube = features.shape[1:4], flatten_locations(features)
        from_frames = self.from_frame(cube)
        states = [ops.zeros_like(from_frames[:, 0])] * (2 * self.cells)
        if self.initial == "clip":
            real = ops.cast(mask, cube.dtype)[..., None, None]
            clip_means = ops.sum(cube * real, axis=1) / ops.sum(real, axis=1)
            states = [make(self.dropout(clip_means, training=training)) for make in self.initial_states]
        states = list(zip(states[::2], states[1::2], strict=True))
        hidden = states[-1][0]
        # A convolution is a matrix product over each location's neighbourhood. Written so its gradient by the kernel is
        # a product too, which on CPUs is three times as fast as TensorFlow's gradient of a convolution.
        picked = ops.cast(neighbourhoods(height, width), hidden.dtype)
        kernels = [ops.concatenate([cell.kernel, cell.recurrent_kernel], axis=2) for cell in (self.cell, *self.upper)]
        kernels = [ops.cast(ops.reshape(kernel, (-1, 4 * self.filters)), hidden.dtype) for kernel in kernels]
        biases = [ops.cast(cell.bias, hidden.dtype) for cell in (self.cell, *self.upper)]

        def conv_lstm(inputs, state, kernel, bias):
            hidden, cell = state
            around = ops.matmul(picked, ops.concatenate([inputs, hidden], axis=-1))
            gates = ops.matmul(ops.reshape(around, (-1, kernel.shape[0])), kernel) + bias
            gates = ops.reshape(gates, (-1, height * width, 4 * self.filters))
            keep_in, forget, candidate, keep_out = ops.split(gates, 4, axis=-1)
            cell = ops.sigmoid(forget) * cell + ops.sigmoid(keep_in) * ops.tanh(candidate)
            return ops.sigmoid(keep_out) * ops.tanh(cell), cell

        hiddens, attention = [], []
        for t in range(frames):
            scores = self.to_scores(ops.tanh(from_frames[:, t] + self.from_hidden(hidden)))
            attention.append(ops.softmax(scores[..., 0]))
            below = cube[:, t] * (attention[-1][..., None] * (height * width if self.rescale else 1))
            for n, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
                states[n] = conv_lstm(below, states[n], kernel, bias)
                below = hidden = states[n][0]
            hiddens.append(hidden)
        hidden = ops.reshape(ops.stack(hiddens, axis=1), (-1, frames, height, width, self.filters))
        return hidden, maps(ops.stack(attention, axis=1), mask, height)

    def get_config(self):
        own = {"filters": self.filters, "weight_decay": self.weight_decay, "cells": self.cells}
        own |= {"initial": self.initial, "rescale": self.rescale, "dropout": self.dropout.rate}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("action_attention")
class MeanPooling(keras.layers.Layer):
    """No recurrence: each frame's mean over locations, `(B, T, D)`, and uniform maps. The `softmax` control's core."""

    def call(self, features, mask, training=None):
        cube = flatten_locations(features)
        uniform = ops.full_like(cube[..., 0], 1 / cube.shape[2])
        return ops.mean(cube, axis=2), maps(uniform, mask, features.shape[2])
