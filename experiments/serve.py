"""A page on this machine on which one drops a video, records one or uses the webcam, and sees what the model sees.

python -m experiments.serve --run_dir DIR [--run_dir DIR ...] | --pretrained NAME

`serve.html` of this package with the data inside it; it asks nothing of any network but this server.
"""

import ipaddress
import json
import signal
import sys
import tempfile
import threading
from pathlib import Path

import cv2
import numpy as np
from absl import flags

from action_attention.errors import UserError
from action_attention.heatmaps import FULL, paint
from action_attention.runs import pretrained_names
from data_prep import program
from data_prep.recognizer import CARTOONS, Recognizer, of_cartoons
from data_prep.terminal import say, warn
from data_prep.videos import EXTENSIONS
from experiments.jobs import data_url
from experiments.predict import open_run
from experiments.server import Server


def define_flags() -> None:
    flags.DEFINE_multi_string("run_dir", [], "run directory of a trained model; give it once for each run")
    names = ", ".join(pretrained_names()) or "there are none in this installation"
    flags.DEFINE_string("pretrained", None, f"instead of --run_dir, a model of this package: {names}")
    flags.DEFINE_string("weights", None, "weights file of the backbone, for runs whose features were made with one")
    flags.DEFINE_string("host", "127.0.0.1", "address to listen at; any other lets others on your network use the page")
    flags.DEFINE_integer("port", 8000, "port to listen at; 0 takes a free one", 0, 65535)
    flags.DEFINE_integer("max_megabytes", 200, "largest video that may be sent, in megabytes", 1)


def main() -> None:
    args = flags.FLAGS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the temporary files go
    if args.pretrained is not None or not args.run_dir:
        runs = [open_run(next(iter(args.run_dir), None), args.pretrained)]
    else:
        runs = [open_run(folder, None) for folder in args.run_dir]
    recognizers = [Recognizer(run, args.weights) for run in runs]
    max_bytes = args.max_megabytes * 10**6
    with tempfile.TemporaryDirectory(prefix="action_attention-", ignore_cleanup_errors=True) as folder:
        page = make_page(recognizers, max_bytes)
        try:
            server = Server((args.host, args.port), recognizers, page, Path(folder), max_bytes)
        except OSError as error:
            raise UserError(
                f"--host={args.host} --port={args.port} cannot be listened at ({error.strerror}); give another --port"
            ) from error
        if not is_loopback(args.host):
            warn(f"--host={args.host}: whoever reaches this machine may use the page, and what they send is "
                  "not encrypted; browsers give no camera to such pages")  # fmt: skip
        say(f"http://{_in_url(args.host)}:{server.server_port}/  (Ctrl-C ends it)")
        try:
            # The videos are looked at here, in the main thread: Ctrl-C then ends what is at work, which tidies up.
            threading.Thread(target=server.serve_forever, daemon=True).start()
            server.jobs.work()
        except KeyboardInterrupt:
            say("\nstopped", sys.stderr)
        finally:
            server.shutdown()
            server.server_close()


def make_page(recognizers: list[Recognizer], max_bytes: int) -> str:
    """`serve.html` about these recognizers."""
    folders = [recognizer.run.folder.resolve() for recognizer in recognizers]
    unique = len({folder.name for folder in folders}) == len(folders)
    calibrations = [recognizer.run.calibration() for recognizer in recognizers]
    grey = np.full((1, 256, 3), 128, np.uint8)
    legend = paint(np.tile(grey, (16, 1, 1)), np.tile(np.linspace(0, 1, 256), (16, 1)))
    data = {
        "runs": [
            {
                "name": folder.name if unique else str(folder),
                "classes": recognizer.classes,
                "fps": recognizer.fps,
                "vote": recognizer.config.training.vote,
                "threshold": calibration["threshold"] if calibration else None,
                "warning": CARTOONS if of_cartoons(recognizer.run) else None,
            }
            for recognizer, folder, calibration in zip(recognizers, folders, calibrations, strict=True)
        ],
        "max_bytes": max_bytes, "extensions": EXTENSIONS, "full": FULL,
        "legend": data_url(cv2.cvtColor(legend, cv2.COLOR_RGB2BGR), "png"),
    }  # fmt: skip
    page = (Path(__file__).parent / "serve.html").read_text(encoding="utf-8")
    return page.replace("{{data}}", json.dumps(data).replace("<", "\\u003c"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    program.run(main, define_flags)
