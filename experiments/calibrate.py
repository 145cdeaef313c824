"""Makes a run say how sure it may be: fits a temperature on validation videos, writes `calibration.json` into the run.

python -m experiments.eval --run_dir DIR --subset=validation
python -m experiments.calibrate --run_dir DIR [--from DIR ...]
"""

from pathlib import Path

from absl import flags

from action_attention.calibration import LIMITS, calibrate
from action_attention.errors import UserError
from action_attention.features import write_json
from action_attention.runs import Run
from data_prep import program
from data_prep.terminal import say


def define_flags() -> None:
    flags.DEFINE_string("run_dir", None, "run directory that gets calibration.json", required=True)
    flags.DEFINE_multi_string(
        "from",
        [],
        "run directory whose validation videos the temperature is fitted on; give it once for each run [the run]",
    )


def calibrate_run(folder: Path, sources: list[Path]) -> dict:
    """Writes a run's `calibration.json`, fitted on the validation videos of the runs in `sources`; returns its content.

    Raises UserError if one is not evaluated on its validation videos, or is of another model or other classes.
    """
    if len({source.resolve() for source in sources}) < len(sources):
        raise UserError("--from names a run twice, which would be judged by what it was fitted on; give each once")
    run, runs = Run.open(folder, finished=True), [Run.open(source, finished=True) for source in sources]
    for source in runs:
        for what in ("model_name", "classes"):
            if getattr(source, what) != getattr(run, what):
                raise UserError(
                    f"{source.folder} and {run.folder} have different {what.removesuffix('_name')}; a temperature is "
                    "of runs that differ in their videos or seeds only: leave the other ones out of --from"
                )
    found = calibrate([source.predictions("validation") for source in runs], run.config.training.vote)
    write_json(run.calibration_file, found)
    return found


def in_words(calibration: dict) -> str:
    """A few lines of a `calibration.json`."""
    before, after, above = (calibration[key] for key in ("before", "after", "above_threshold"))
    temperature, low, high = calibration["temperature"], *LIMITS
    edge = "" if low * 1.01 < temperature < high * 0.99 else f", which is where the search ends ({low:g} to {high:g})"
    accuracy = "" if above["accuracy"] is None else f", {above['accuracy']:.1%} of them right"
    return "\n".join([
        f"temperature {temperature:.3f}{edge}, of {runs_in_words(calibration)}",
        f"accuracy {after['accuracy']:.1%}; mean confidence {before['confidence']:.1%} before, "
        f"{after['confidence']:.1%} after; expected calibration error {before['ece']:.1%} before, {after['ece']:.1%} "
        f"after ({calibration['judged_by']})",
        f"{above['share']:.1%} of the videos have a confidence of {calibration['threshold']:.0%} or more{accuracy}",
    ])  # fmt: skip


def runs_in_words(calibration: dict) -> str:
    runs = calibration["runs"]
    return f"{calibration['videos']} validation videos of {runs} run{'s' if runs > 1 else ''}"


def main() -> None:
    args = flags.FLAGS
    folder = Path(args.run_dir)
    found = calibrate_run(folder, [Path(source) for source in args["from"].value or [folder]])
    say(f"{Run(folder).calibration_file}:\n{in_words(found)}")


if __name__ == "__main__":
    program.run(main, define_flags)
