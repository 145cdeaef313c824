"""What every program does around its `main`: flags, one clear sentence for a user's mistake, exit codes."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from action_attention.errors import UserError
from action_attention.registry import import_modules
from data_prep.terminal import log_in_sentences, reflowed, say


def run(main: Callable[[], None], define_flags: Callable[[], None], after_stop: str = "") -> None:
    """Parses the flags, calls `main()` and exits: 0 done, 1 a user's mistake or the system's refusal, 130 Ctrl-C.

    The modules that `--import` names are imported before `define_flags()`, so that what they register has flags.
    `after_stop` says how to go on after Ctrl-C.
    """

    def guarded(arguments: list[str]) -> None:
        if len(arguments) > 1:
            _fail(f"unknown argument {arguments[1]!r}; every setting is a flag, see --help")
        if flags.FLAGS["import"].value != modules:
            _fail("--import stands in a flag file, and nothing that a file names is run; give it on the command line")
        try:
            main()
        except (UserError, OSError) as error:
            _fail(str(error))
        except MemoryError:
            _fail("memory ran out; end other programs, or give it less to do at a time")
        except KeyboardInterrupt:
            say(f"\nstopped; {after_stop}".rstrip("; "), sys.stderr)
            sys.exit(130)

    modules = _imported(sys.argv[1:])
    flags.DEFINE_multi_string(
        "import", [], "module that registers your own models or backbones; give it once for each module"
    )
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["import"])  # --help shows it
    try:
        import_modules(modules)
        define_flags()
    except UserError as error:
        _fail(str(error))
    started = sys.modules["__main__"]
    started.__doc__ = reflowed(started.__doc__ or "", sys.stdout)  # --help begins with it
    logging.set_verbosity(logging.INFO)
    log_in_sentences()
    app.run(guarded)


def _imported(arguments: list[str]) -> list[str]:
    """The values of `--import`, read before there are flags."""
    modules = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        if name in ("--import", "-import"):
            modules.append(value if equals else following)
    return modules


def _fail(message: str) -> None:
    say(f"error: {message}", sys.stderr)
    sys.exit(1)
