"""What all models share: inputs -> core -> one vector a frame -> one classifier for every frame."""

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import keras
from keras import ops

from action_attention.errors import UserError
from action_attention.models.inputs import MOTIONS, NORMALIZATIONS, sqrt_l2, with_motion
from action_attention.models.states import RecurrentCore
from action_attention.registry import all_settings, find_model, renamed
from action_attention.settings import Settings, setting

FUSIONS = ("none", "early")
Tensor = Any  # of whatever backend Keras runs on


@dataclass(frozen=True)
class ModelSettings(Settings):
    """Settings of every model."""

    dropout: float = setting(
        0.5, "rate of dropout at all fully connected layers, dt", low=0, high=1, search=(0.0, 0.25, 0.5, 0.75)
    )
    weight_decay: float = setting(
        0.0, "weight of the squared kernels in the loss, omega", low=0, search=(0.0, 1e-6, 1e-5, 1e-4)
    )
    normalize: str = setting(
        "none",
        "how cubes are normalised: not at all, or by square root and L2 norm",
        choices=NORMALIZATIONS,
        search=NORMALIZATIONS,
    )
    motion: str = setting(
        "none", "append to each cube its difference from the one before", choices=MOTIONS, search=MOTIONS
    )
    channel_dropout: float = setting(
        0.0, "rate at which whole channels of a clip are dropped", low=0, high=1, search=(0.0, 0.25, 0.5)
    )
    fusion: str = setting(
        "none",
        "how optical flow (--flow_features) is used: not at all, or with its channels appended to the frames'",
        choices=FUSIONS,
    )

    @property
    def takes_motion(self) -> bool:
        """Whether motion maps are among the model's inputs."""
        return False

    @property
    def takes_flow(self) -> bool:
        """Whether features of optical flow are among the model's inputs."""
        return self.fusion != "none"


@dataclass(frozen=True)
class RecurrentSettings(ModelSettings):
    """Settings of every model with a memory."""

    lstm_units: int = setting(
        512, "number of LSTM units or ConvLSTM filters, U", low=1, high=65536, search=(64, 128, 256, 512)
    )
    cells: int = setting(
        1, "number of recurrent cells, stacked; the attention reads the top one", low=1, high=16, search=(1, 2, 3)
    )


def kernel_options(settings: ModelSettings, dtype: Any) -> dict[str, Any]:
    """What every layer with a kernel gets: `weight_decay` adds `omega * sum |w|^2`."""
    decay = keras.regularizers.L2(settings.weight_decay) if settings.weight_decay else None
    return {"kernel_regularizer": decay, "dtype": dtype}


class ActionModel(keras.Model):
    """Inputs, a core layer (features, mask -> hidden, attention), dropout, and one classifier for every frame.

    A subclass defines `make_core` and registers itself with `@register_model(name, Settings)`.

    Args:
        classes: C, number of classes.
        settings: of the subclass's `settings_class`; None for its defaults.

    Call arguments:
        inputs: `{"features": (B, T, H, W, D) float, "mask": (B, T) bool}`; the mask is true for real frames, which come
            first. Where the settings take them, `"motion": (B, T, H, W)`, motion maps as the feature cache has them,
            and `"flow": (B, T, H, W, D')`, features of the frames' optical flow.

    Returns:
        `{"logits": (B, T, C), "attention": (B, T, H, W)}`, float32; the maps of padded frames are zero.

    Raises UserError, a ValueError, if the inputs are not of this form.
    """

    settings_class: ClassVar[type[ModelSettings]] = ModelSettings  # by `register_model`
    # False where every place weighs the same, whatever was trained
    has_attention: ClassVar[bool] = True
    # True where the operations of a step are so small that two cores take longer for one than one core does
    small_operations: ClassVar[bool] = False
    classifier_start: ClassVar[str] = "glorot_uniform"  # the classifier's kernel before training

    def __init__(self, classes: int, settings: ModelSettings | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.classes, self.settings = classes, settings or self.settings_class()
        self.cube_shape: tuple[int, ...] | None = None
        options = kernel_options(self.settings, self.dtype_policy)
        # whole channels of a clip's features, the same ones in all its frames and locations (spatial dropout, Tompson
        # et al. 2015, arXiv 1411.4280)
        self.channel_dropout = keras.layers.SpatialDropout3D(
            self.settings.channel_dropout, data_format="channels_last", dtype=self.dtype_policy, name="channel_dropout"
        )
        self.core = self.make_core(self.settings, options)
        self.dropout = keras.layers.Dropout(self.settings.dropout, dtype=self.dtype_policy, name="dropout")
        # float32 under mixed precision too: the loss is a logarithm of these
        self.classifier = keras.layers.Dense(
            classes, kernel_initializer=self.classifier_start, name="classifier", **{**options, "dtype": "float32"}
        )

    def make_core(self, settings: Any, options: dict[str, Any]) -> keras.layers.Layer:
        """The layer that this model consists of, named "core"; `options` go to every layer with a kernel.

        Called with features `(B, T, H, W, D)`, of frames, or of these and their flow, mask `(B, T)`, `training` and,
        where the settings take them, motion maps `motion` `(B, T, H, W)` and, if `fusion` is not early, features `flow`
        `(B, T, H, W, D)`, it returns hidden vectors `(B, T, U)` or maps `(B, T, H, W, U)`, and attention
        `(B, T, H, W)`.
        """
        raise AttributeError(f"{type(self).__name__} defines no core")

    def to_vectors(self, hidden: Tensor, training: bool | None) -> Tensor:
        """What the core leaves as the vectors of frames that the classifier sees, `(B, T, size)`."""
        return hidden

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.cube_shape = check_inputs(inputs, self.cube_shape, self.settings)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: dict[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        for_core, _ = self.prepare(inputs, training=training)
        features, mask = for_core.pop("features"), for_core.pop("mask")  # Keras builds a layer of its first arguments
        hidden, attention = self.core(features, mask, training=training, **for_core)
        return self.classify(hidden, attention, training)

    def classify(self, hidden: Tensor, attention: Tensor, training: bool | None = None) -> dict[str, Tensor]:
        """What a call returns, from what the core does."""
        vectors = self.dropout(self.to_vectors(hidden, training), training=training)
        return {"logits": self.classifier(vectors), "attention": attention}

    def prepare(
        self, inputs: dict[str, Tensor], before: dict[str, Tensor] | None = None, training: bool | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the core is called with, as the settings have it, and the cubes that differences are taken of.

        `before` has each stream's cube before the first, `(B, 1, H, W, D)`, where there is one.
        """
        cubes = {"flow": inputs["flow"]} if self.settings.takes_flow else {}
        cubes["features"], differing = inputs["features"], {}
        if self.settings.normalize == "sqrt_l2":
            cubes = {name: sqrt_l2(cube) for name, cube in cubes.items()}
        if self.settings.motion == "difference":
            differing = cubes
            cubes = {name: with_motion(cube, (before or {}).get(name)) for name, cube in cubes.items()}
        if self.settings.fusion == "early":
            cubes = {"features": ops.concatenate([cubes["features"], cubes["flow"]], axis=-1)}
        cubes = {name: self.channel_dropout(cube, training=training) for name, cube in cubes.items()}
        beside = {"motion": inputs["motion"]} if self.settings.takes_motion else {}
        return {**cubes, "mask": inputs["mask"], **beside}, differing

    def first_states(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """What is carried into the first frame of a stream, for `step`.

        Args:
            inputs: the stream's first frames, a warm-up window, in the form of a call's. Where the first states are
                made of the clip's mean (they are not with `ablate=first_states` or `first_states=zeros`), it is this
                window's mean; with the whole clip as the window, steps give what a call gives.

        Returns:
            Lists of tensors `(B, ...)` by name.

        Raises UserError if the model is not recurrent.
        """
        if not self.is_recurrent:
            raise UserError(f"{type(self).__name__} keeps no state between frames; call it with whole clips")
        for_core, differing = self.prepare(self._streamed(inputs))
        for_core.pop("motion", None)
        return {
            "core": self.core.first_states(**for_core),
            "before": {name: cube[:, :1] for name, cube in differing.items()},
        }

    def step(self, inputs: dict[str, Tensor], states: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a call returns of a stream's next frame or frames, all of them real, and the states after them."""
        for_core, differing = self.prepare(self._streamed(inputs), states["before"])
        hidden, attention, after = self.core.go_on(states=states["core"], **for_core)
        before = {name: cube[:, -1:] for name, cube in differing.items()}
        return self.classify(hidden, attention), {"core": after, "before": before}

    def _streamed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Checked and converted as Keras does it for a call."""
        self.cube_shape = check_inputs(inputs, self.cube_shape, self.settings)
        types = {name: "bool" if name == "mask" else self.compute_dtype for name in inputs}
        return {name: ops.convert_to_tensor(value, types[name]) for name, value in inputs.items()}

    @property
    def is_recurrent(self) -> bool:
        """Whether it can take a stream (`first_states`, `step`)."""
        return isinstance(self.core, RecurrentCore)

    def learned(self) -> dict[str, float]:
        """The weights that are single numbers, such as the motion prior's gamma, by name."""
        return {weight.name: float(weight) for weight in self.weights if not len(weight.shape)}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "classes": self.classes, **asdict(self.settings)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ActionModel":
        own = {field.name for field in fields(cls.settings_class)}
        config = renamed(config)
        values = {name: value for name, value in config.items() if name in own}
        # files of version 0.1 name the settings of all models in each
        rest = {name: value for name, value in config.items() if name not in own | all_settings().keys()}
        return super().from_config({**rest, "settings": cls.settings_class(**values)})


def check_inputs(inputs: Any, cube_shape: tuple[int, ...] | None, settings: ModelSettings) -> tuple[int, ...]:
    """The shape of the inputs' cubes, `(H, W, D)`. Raises UserError if they are not what such a model takes."""
    if not isinstance(inputs, dict) or not {"features", "mask"} <= inputs.keys():
        given = ", ".join(inputs) if isinstance(inputs, dict) else type(inputs).__name__
        raise UserError(
            f'a model takes {{"features": (B, T, H, W, D), "mask": (B, T) of real frames}}. Received: {given}'
        )
    features, mask = (tuple(inputs[name].shape) for name in ("features", "mask"))
    if len(features) != 5 or (cube_shape and features[2:] != cube_shape):
        wanted = ", ".join(map(str, cube_shape or "HWD"))
        raise UserError(f"features must have the shape (B, T, {wanted}). Received: {features}")
    if len(mask) != 2 or any(None not in sizes and len(set(sizes)) > 1 for sizes in zip(mask, features, strict=False)):
        raise UserError(f"the mask must have the features' shape (B, T), {features[:2]}. Received: {mask}")
    for name, takes, what, axes in (
        ("motion", settings.takes_motion, "motion maps", "B, T, H, W"),
        ("flow", settings.takes_flow, "features of optical flow", "B, T, H, W, D"),
    ):
        there = tuple(inputs[name].shape) if name in inputs else ()
        if takes and (there[:4] != features[:4] or len(there) != len(axes.split())):
            raise UserError(
                f'this model takes {what} too: {{"{name}": ({axes})}}, of the features\' shape {features[:4]}. '
                f"Received: {there or 'none'}"
            )
    return features[2:]


def example_inputs(
    settings: ModelSettings,
    cube_shape: tuple[int, ...],
    flow_shape: tuple[int, ...] | None = None,
    make: Any = ops.zeros,
) -> dict[str, Tensor]:
    """Inputs of a clip of one frame, of what `make(shape, dtype)` gives: no weight depends on T."""
    inputs = {"features": make((1, 1, *cube_shape), "float32"), "mask": make((1, 1), "bool")}
    if settings.takes_motion:
        inputs["motion"] = make((1, 1, *cube_shape[:2]), "float32")
    if settings.takes_flow:
        inputs["flow"] = make((1, 1, *(flow_shape or cube_shape)), "float32")
    return inputs


def build_model(
    name: str, classes: int, *, cube_shape: tuple[int, int, int] | None = None,
    flow_shape: tuple[int, int, int] | None = None, **settings: Any,
) -> ActionModel:  # fmt: skip
    """A model by its registered name; `settings` are those of its settings class, the rest have its defaults.

    Its variables are made at once if `cube_shape` `(H, W, D)` is given, otherwise when it is first called. The cubes of
    optical flow, where the settings take it, are alike or `flow_shape`.

    Raises UserError, a ValueError, for an unknown name or setting, or a value out of range.

    Example:

        model = build_model("alstm", classes=51)
        outputs = model({"features": features, "mask": mask})    # (B, 30, 7, 7, 512), (B, 30)
        outputs["logits"], outputs["attention"]                  # (B, 30, 51), (B, 30, 7, 7)
    """
    entry, settings = find_model(name), renamed(settings)
    own = [field.name for field in fields(entry.settings)]
    for key, value in settings.items():
        if key not in own:
            raise UserError(f"{name} has no setting {key}; it has {', '.join(own)}. Received: {key}={value!r}")
    model = entry.build(classes, entry.settings(**settings), name=name)
    if cube_shape:
        model(example_inputs(model.settings, cube_shape, flow_shape))
    return model
