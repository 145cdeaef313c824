"""Searches hyper-parameters on validation videos; the test videos are not even looked for in the cache.

python -m experiments.sweep --features DIR --splits DIR --split 1 --model alstm --output DIR [--trials 30] [--workers 2]

Every setting of the model that says what to search and is not given as a flag is searched, by Optuna's TPE after ten
random trials; one trial has the defaults. A trial trains on each of `--folds` parts of the training list (by source
film) for `--epochs` epochs; its value is the video accuracy on the rest, averaged over the folds, in the epoch where
that is best. A trial whose first fold lags behind the median is stopped early.

`--output` holds `study.journal` (all trials; the same command goes on with it, on any machine that sees the folder, and
on several at once), `sweep.md` (a table), `best.flags` (for `experiments.train --flagfile`, with all training videos)
and `logs` (TensorBoard's HParams).
"""

import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from tensorboard.plugins.hparams import api as hparams
from tqdm import tqdm

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from action_attention.registry import Config, find_model, import_modules
from action_attention.runs import Run
from action_attention.settings import LogRange
from action_attention.training import DivergedError
from action_attention.training import train as train_model
from data_prep import program
from data_prep.datasets import groups_of, made_lists
from data_prep.splits import validation_folds
from data_prep.terminal import say
from data_prep.workers import Worker
from experiments import options, text_table
from experiments.processes import processes

try:
    import optuna
    from optuna.storages import journal
    from optuna.trial import TrialState
except ModuleNotFoundError:  # an extra; `main` says so
    optuna = None  # type: ignore[assignment]

JOURNAL = "study.journal"
WORKERS = "workers"  # folder of the processes at work and of what they claimed
POLL_SECONDS = 5.0
RANDOM_TRIALS = 10
WARM_UP_EPOCHS = 2  # no trial is stopped before


@dataclass(frozen=True)
class Sweep:
    """What is searched, and where; a worker process gets this and nothing else."""

    features: Path
    output: Path
    data: dict  # the flags that say which videos
    model: str
    given: dict  # hyper-parameters that are not searched
    folds: list[tuple[list[str], list[str]]]
    by_source: bool  # what the folds are: of the training list by recording, or the lists' own validation videos
    epochs: int
    seed: int
    imports: tuple[str, ...] = ()

    @property
    def space(self) -> dict[str, tuple | LogRange]:
        """What each searched setting is drawn from."""
        searched = {name: field.metadata["search"] for name, field in find_model(self.model).fields.items()}
        return {name: values for name, values in searched.items() if values and name not in self.given}

    def config(self, chosen: dict) -> Config:
        """With a fixed number of epochs, so that the folds' epochs can be averaged."""
        same = {"epochs": self.epochs, "patience": self.epochs, "seed": self.seed}
        return Config.of(self.model, **{**self.given, **chosen, **same})

    def scratch(self, number: int) -> Path:
        return self.output / f"trial-{number}"

    @property
    def workers(self) -> Path:
        return self.output / WORKERS

    def lock(self) -> "journal.JournalFileOpenLock":
        """What lets one process of any machine append to the journal at a time, on NFS too."""
        return journal.JournalFileOpenLock(str((self.output / JOURNAL).absolute()))

    def storage(self) -> "optuna.storages.JournalStorage":
        """What was appended survives a kill, and of two processes that finish the same trial the first one counts."""
        backend = journal.JournalFileBackend(str((self.output / JOURNAL).absolute()), self.lock())
        return optuna.storages.JournalStorage(backend)


def finished(study: "optuna.Study") -> list:
    """Trials that count: complete ones and those that were stopped because they lagged behind."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def open_study(sweep: Sweep, identity: dict) -> "optuna.Study":
    """The study in the output folder, for one process at a time. Raises UserError if the study there is another one."""
    if (earlier := sweep.output / "study.db").exists():
        raise UserError(f"{earlier} is the sweep of an earlier version; use that version, or give another --output")
    _mend(sweep)
    try:
        study = optuna.create_study(
            storage=sweep.storage(), study_name="sweep", direction="maximize", load_if_exists=True
        )
    except ValueError as error:  # of JSON
        raise UserError(f"{sweep.output / JOURNAL} is damaged ({error}); give another --output") from error
    there = study.user_attrs.get("identity", identity)
    for key, value in identity.items():
        if there[key] != value:
            raise UserError(
                f"{sweep.output} is a sweep with {key}={there[key]}, now {key}={value} is asked for; give it another "
                "--output, or the same settings"
            )
    study.set_user_attr("identity", identity)
    table = {name: sweep.config({}).flat()[name] for name in sweep.space}
    if all(_fixed(trial) != table for trial in study.get_trials() if trial.state != TrialState.FAIL):
        study.enqueue_trial(table)
    return study


def _mend(sweep: Sweep) -> None:
    """Cuts off half a line, which a full disk or a machine that went off may leave at the journal's end."""
    path, lock = sweep.output / JOURNAL, sweep.lock()
    lock.acquire()
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
    lock.release()


def _fixed(trial: Any) -> dict:
    """The values that it has because they were asked for, not drawn."""
    return trial.system_attrs.get("fixed_params", {})


def suggest(trial: "optuna.Trial", name: str, values: tuple | LogRange) -> Any:
    if isinstance(values, LogRange):
        return trial.suggest_float(name, values.low, values.high, log=True)
    return trial.suggest_categorical(name, values)


def run_trial(trial: "optuna.Trial", sweep: Sweep, cache: FeatureCache) -> float:
    """Trains one choice on all folds; returns its value, keeps each fold's curve, or raises TrialPruned."""
    chosen = {name: suggest(trial, name, values) for name, values in sweep.space.items()}
    scratch, curves = sweep.scratch(trial.number), []
    try:
        for fold, (kept, held_out) in enumerate(sweep.folds):
            keras.utils.clear_session()
            train_model(
                sweep.config(chosen), cache, {"train": kept, "validation": held_out, "test": []}, scratch / str(fold),
                callbacks=[StopLagging(trial)] if fold == 0 else [],
            )  # fmt: skip
            curves.append([epoch["val_video_top1"] for epoch in Run(scratch / str(fold)).history()])
    except DivergedError as error:
        raise optuna.TrialPruned(str(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    trial.set_user_attr("curves", curves)
    return float(np.mean(curves, axis=0).max())


class StopLagging(keras.callbacks.Callback):
    """Reports each epoch of the first fold and stops the trial if Optuna's median says so."""

    def __init__(self, trial: "optuna.Trial"):
        super().__init__()
        self.trial = trial

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.trial.report(float(logs["val_video_top1"]), epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def work(sweep: Sweep, trials: int) -> None:
    """Runs trials until as many are finished, by this process or others on any machine.

    Every finished trial has a ticket of `range(trials)`, no two the same. A worker claims one before it begins a trial;
    the ticket of one that died is taken over.
    """
    cache, storage = FeatureCache(sweep.features), sweep.storage()
    pruner = optuna.pruners.MedianPruner(n_startup_trials=RANDOM_TRIALS // 2, n_warmup_steps=WARM_UP_EPOCHS)
    study = optuna.load_study(study_name="sweep", storage=storage)
    with Worker(sweep.workers) as worker:
        while missing := missing_tickets(study, trials):
            ticket = next((each for each in missing if worker.claim(f"ticket-{each}")), None)
            if ticket is None:
                time.sleep(POLL_SECONDS)
                continue
            # a seed for each ticket: workers that begin together must not draw the same
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=RANDOM_TRIALS, seed=1000 * sweep.seed + ticket, constant_liar=True
            )
            study = optuna.load_study(study_name="sweep", storage=storage, sampler=sampler, pruner=pruner)
            if trial := begin(study, sweep, worker, ticket):
                finish(study, trial, sweep, cache)
            worker.release(f"ticket-{ticket}")
    cache.close()


def begin(study: "optuna.Study", sweep: Sweep, worker: Worker, ticket: int) -> "optuna.Trial | None":
    """A new trial with this ticket, None if one is finished. What a dead worker left of it is set aside: it counts
    nowhere, and values that were asked for are asked for again."""
    worker.wait_for("begin")  # so a trial that has no ticket yet is one whose worker died here
    for half in study.get_trials(states=(TrialState.RUNNING,)):
        if half.user_attrs.get("ticket", ticket) == ticket:
            with suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):  # it has ended after all
                study.tell(half.number, state=TrialState.FAIL)
                shutil.rmtree(sweep.scratch(half.number), ignore_errors=True)
                if _fixed(half):
                    study.enqueue_trial(_fixed(half))
    trial = None
    if ticket in missing_tickets(study, ticket + 1):
        trial = study.ask()
        trial.set_user_attr("ticket", ticket)
    worker.release("begin")
    return trial


def finish(study: "optuna.Study", trial: "optuna.Trial", sweep: Sweep, cache: FeatureCache) -> None:
    """Runs a trial and writes down how it ended. Raises UserError if another worker set it aside meanwhile."""
    taken = UserError(
        f"trial {trial.number} was without a sign of life for so long that another worker runs it again; run the same "
        "command again"
    )
    try:
        value, state = run_trial(trial, sweep, cache), TrialState.COMPLETE
    except optuna.TrialPruned:
        value, state = None, TrialState.PRUNED
    except optuna.exceptions.UpdateFinishedTrialError as error:
        raise taken from error
    except BaseException:
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise
    try:
        study.tell(trial, value, state)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError) as error:
        raise taken from error


def worker_process(sweep: Sweep, trials: int) -> None:
    """`work` in a process of its own."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        import_modules(sweep.imports)
        work(sweep, trials)
    except (UserError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        sys.exit(1)


def missing_tickets(study: "optuna.Study", trials: int) -> list[int]:
    """Those of `range(trials)` that no finished trial has: a half one's is given out again."""
    done = {trial.user_attrs["ticket"] for trial in finished(study)}
    return [ticket for ticket in range(trials) if ticket not in done]


def search(sweep: Sweep, study: "optuna.Study", worker: Worker, trials: int, workers: int) -> None:
    """Lets worker processes run what is missing of `trials`, and keeps the table up to date meanwhile."""
    workers = min(workers, len(missing_tickets(study, trials)))
    threads = str(max(1, (os.cpu_count() or 1) // max(1, workers)))
    os.environ.update(TF_NUM_INTRAOP_THREADS=threads, OMP_NUM_THREADS=threads, TF_FORCE_GPU_ALLOW_GROWTH="true")
    with (
        processes() as start,
        tqdm(total=trials, initial=len(finished(study)), unit=" trials", disable=None) as progress,
    ):
        running = [start(worker_process, sweep, trials) for _ in range(workers)]
        while alive := [process.sentinel for process in running if process.is_alive()]:
            connection.wait(alive, timeout=10)
            if len(finished(study)) > progress.n and worker.claim("results"):
                progress.update(len(finished(study)) - progress.n)
                write_results(sweep, study)
                worker.release("results")
    worker.wait_for("results")
    write_results(sweep, study)
    worker.release("results")
    if any(process.exitcode for process in running):
        raise UserError(f"a worker died after {len(finished(study))} of {trials} trials; the same command goes on")


def write_results(sweep: Sweep, study: "optuna.Study") -> None:
    """`sweep.md`, `best.flags`, and TensorBoard's files of complete trials that have none yet."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return
    complete = sorted(complete, key=lambda trial: trial.value or 0.0, reverse=True)
    curves = {trial.number: np.array(trial.user_attrs["curves"]) for trial in complete}
    epochs = {number: int(curve.mean(axis=0).argmax()) + 1 for number, curve in curves.items()}
    about = (
        f"{sweep.model}, {len(complete)} complete trials and {len(finished(study)) - len(complete)} stopped early; "
        f"video accuracy on validation videos, {len(sweep.folds)} folds. The best of many flatters: what counts is the "
        "test accuracy of a run made with best.flags."
    )
    lines = [
        f"{about}\n",
        f"| trial | validation video top-1 | folds | epochs | {' | '.join(sweep.space)} |",
        "|---" * (4 + len(sweep.space)) + "|",
    ]
    for trial in complete:
        of_folds = " ".join(f"{value:.1%}" for value in curves[trial.number][:, epochs[trial.number] - 1])
        values = [trial.params[name] for name in sweep.space]
        shown = [trial.number, f"{trial.value:.1%}", of_folds, epochs[trial.number]]
        shown += [f"{value:.2g}" if isinstance(value, float) else value for value in values]
        lines.append(f"| {' | '.join(map(str, shown))} |")
    (sweep.output / "sweep.md").write_text("\n".join(lines) + "\n")

    best = complete[0]
    settings = {**sweep.data, "model": sweep.model, **sweep.given, **best.params, "epochs": epochs[best.number]}
    if sweep.by_source:
        settings["validation"] = "none"  # train on all videos of the training list
    lines = [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in settings.items()]
    header = f"# Trial {best.number} of a sweep, {best.value:.1%} on validation videos; {about}"
    (sweep.output / "best.flags").write_text("\n".join([header, *lines]) + "\n")

    for trial in complete:
        folder = sweep.output / "logs" / f"trial-{trial.number:04}"
        if folder.exists():
            continue
        with tf.summary.create_file_writer(str(folder)).as_default():
            hparams.hparams(trial.params, trial_id=str(trial.number))
            for epoch, value in enumerate(curves[trial.number].mean(axis=0)):
                tf.summary.scalar("validation/video_top1", value, step=epoch)
            tf.summary.scalar("validation/best_video_top1", trial.value, step=0)


def define_flags() -> None:
    options.define_data_flags()
    options.define_settings(without=("epochs", "patience"))
    flags.adopt_module_key_flags(options)
    text_table.define_format()
    flags.adopt_module_key_flags(text_table)
    flags.DEFINE_string("output", None, "folder of the sweep; all output goes there", required=True)
    flags.DEFINE_integer("trials", 30, "trials in all, with those of earlier runs in --output", lower_bound=1)
    flags.DEFINE_integer("folds", 3, "parts of the training list, each of which validates once", lower_bound=2)
    flags.DEFINE_integer("epochs", 15, "epochs of each training", lower_bound=1)
    flags.DEFINE_integer("workers", 1, "processes that train at the same time; they share the cores", lower_bound=1)


def asked_for(cache: FeatureCache, output: Path) -> tuple[Sweep, dict[str, Any]]:
    """The sweep that the flags ask for, and what makes it another one than others."""
    args = flags.FLAGS
    given = {name: value for name, value in options.given_settings().items() if name != "epochs"}
    seed = given.pop("seed", 0)
    split, about = options.split_as_flagged(cache, output, seed, test=False)
    by_source = about["validation"] == "source"
    folds = [(split["train"], split["validation"])]
    if by_source:
        groups, _ = groups_of(Path(args.splits) if args.splits else None, output, cache.videos)
        folds = validation_folds(split, args.folds, seed, groups)
    data = {name: args[name].value for name in ("features", "split", "dataset", "allow_missing", "duplicates")}
    data["splits"] = args.splits or made_lists(output)
    data = {name: value for name, value in data.items() if value is not None}
    sweep = Sweep(cache.folder, output, data, args.model, given, folds, by_source, args.epochs, seed,
                  tuple(args["import"].value or ()))  # fmt: skip
    identity = {"model": args.model, "features": cache.fingerprint, "split": about["split"], "folds": len(folds)}
    identity |= {"epochs": args.epochs, "seed": seed, "given": given, "searched": list(sweep.space)}
    return sweep, identity


def main() -> None:
    if optuna is None:
        raise UserError("a sweep needs Optuna, which is not installed: pip install optuna")
    args = flags.FLAGS
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    cache, output = FeatureCache(Path(args.features)), Path(args.output)
    (output / WORKERS).mkdir(parents=True, exist_ok=True)
    with Worker(output / WORKERS) as worker:
        worker.sweep()
        worker.wait_for("start")  # one at a time makes the lists and the study
        sweep, identity = asked_for(cache, output)
        cache.close()
        study = open_study(sweep, identity)
        worker.release("start")
        search(sweep, study, worker, args.trials, args.workers)
    if not (output / "best.flags").exists():
        raise UserError(f"no trial in {output} was completed; is the learning rate too large?")
    text_table.show((output / "sweep.md").read_text())
    say(f"next: python -m experiments.train --flagfile={output / 'best.flags'} --run_dir DIR")


if __name__ == "__main__":
    program.run(main, define_flags, "the same command goes on; trials that were not finished begin anew")
