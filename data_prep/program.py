"""What every program does around its `main`: flags, one clear sentence for a user's mistake, exit codes."""

import sys
from collections.abc import Callable

from absl import app, logging

from action_attention.errors import UserError


def run(main: Callable[[], None], define_flags: Callable[[], None], after_stop: str = "") -> None:
    """Parses the flags, calls `main()` and exits: 0 done, 1 a user's mistake or the system's refusal, 130 Ctrl-C.

    `after_stop` says how to go on after Ctrl-C.
    """

    def guarded(arguments: list[str]) -> None:
        if len(arguments) > 1:
            _fail(f"unknown argument {arguments[1]!r}; every setting is a flag, see --help")
        try:
            main()
        except (UserError, OSError) as error:
            _fail(str(error))
        except KeyboardInterrupt:
            print(f"\nstopped; {after_stop}".rstrip("; "), file=sys.stderr)
            sys.exit(130)

    define_flags()
    logging.set_verbosity(logging.INFO)
    app.run(guarded)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
