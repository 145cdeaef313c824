"""Writes a model for other programs (SavedModel, ONNX, LiteRT), or as a package to pass on.

python -m experiments.export --run_dir DIR|--pretrained NAME --format saved_model|onnx|litert|package --output DIR
"""

from pathlib import Path
from typing import Any

import keras
from absl import flags

import action_attention
from action_attention import exports
from action_attention.errors import UserError
from action_attention.features import with_stream
from action_attention.runs import Run
from data_prep import program
from data_prep.backbones import build_backbone
from data_prep.recognizer import Recognizer
from data_prep.terminal import say
from experiments.package import package
from experiments.predict import open_run

OF_PACKAGE = ("data", "licence", "limits")
OF_FILE = ("part", "frames", "with_backbone", "weights")


def define_flags() -> None:
    flags.DEFINE_string("run_dir", None, "run directory of a trained model")
    flags.DEFINE_string("pretrained", None, "instead of --run_dir, a model of this package")
    flags.DEFINE_enum("format", None, [*exports.SUFFIXES, "package"], "what to write", required=True)
    flags.DEFINE_string(
        "output",
        None,
        "folder to write to, new or empty; a package becomes an archive if it ends in .zip",
        required=True,
    )
    flags.DEFINE_enum("part", None, exports.PARTS, "whole clips [clip], or a stream's initial and step, frame by frame")
    flags.DEFINE_integer("frames", None, "frames of a clip, fixed in the file [as trained]", 1, 1000)
    flags.DEFINE_bool("with_backbone", None, "include the backbone: the file takes RGB frames instead of features")
    flags.DEFINE_string("weights", None, "weights file of the backbone, for a run whose features were made with one")
    flags.DEFINE_string("data", None, "for a package's card: what the model was trained on")
    flags.DEFINE_string("licence", None, "for a package's card: of the data and the weights")
    flags.DEFINE_string("limits", None, "for a package's card: where the model should not be relied on")


def main() -> None:
    args = flags.FLAGS
    run, output = open_run(args.run_dir, args.pretrained), Path(args.output)
    other = OF_FILE if args.format == "package" else OF_PACKAGE
    if given := [name for name in other if getattr(args, name) is not None]:
        raise UserError(f"--{given[0]} does not apply to --format={args.format}; leave it out")
    if args.format == "package":
        if run.pretrained:
            raise UserError(f"{run.folder} is a package already; pass it on as it is")
        package(Run.open(run.folder, finished=True), output, **{
            name: text for name in OF_PACKAGE if (text := getattr(args, name)) is not None})  # fmt: skip
    else:
        options = {name: value for name in OF_FILE if (value := getattr(args, name)) is not None}
        export(run, args.format, output, **options)
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    say(f"{output}: {sum(path.stat().st_size for path in files) / 1e6:.2f} MB")


def export(
    run: Run, kind: str, output: Path, part: str = "clip", frames: int | None = None, with_backbone: bool = False,
    weights: str | None = None,
) -> None:  # fmt: skip
    """Writes a run's model, in float32, as `exports.write` does.

    Raises UserError as that does, and if the run's model or its backbone cannot be read or put in front.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(f"--format={kind} takes Keras on TensorFlow; leave KERAS_BACKEND out")
    networks = keras_networks(run, weights) if with_backbone else None
    frames = frames or run.config.training.clip_length
    exports.write(exports.in_float32(run.model()), part, networks, frames, kind, describe(run), output)


def keras_networks(run: Run, weights: str | None) -> dict[str, keras.Model]:
    """The backbone of each of a model's inputs that has one, in float32. Raises UserError if it is no Keras network."""
    networks = {}
    for name, of_run in zip(("features", "flow"), Recognizer(run, weights).networks.values(), strict=False):
        exact = of_run.precision == "float32"
        backbone = of_run if exact else build_backbone(of_run.name, weights or of_run.weights, "float32")
        try:
            networks[name] = backbone.unrounded()
        except TypeError as error:
            raise UserError(
                f"--with_backbone needs a Keras network, which {backbone.name} of {run.folder} is not; leave it out, "
                "and compute its features by other means"
            ) from error
    return networks


def describe(run: Run) -> dict[str, Any]:
    """What a program must know to use an export without this package, beside what it takes and gives; JSON."""
    calibration = run.calibration()
    streams = [made for made in (run.features, run.flow_features) if made]
    of_backbone = ("backbone", "weights", "weights_sha256", "preprocessing", "resize")
    return {
        "made_by": f"action_attention {action_attention.__version__}",
        "model": run.config.model,
        "classes": run.classes,
        "fps": run.features["fps"],
        "features": [
            {"stream": with_stream(made)["stream"], **{key: made.get(key) for key in of_backbone}} for made in streams
        ],
        "vote": run.config.training.vote,
        "calibration": calibration and {key: calibration[key] for key in ("temperature", "threshold")},
    }


if __name__ == "__main__":
    program.run(main, define_flags)
