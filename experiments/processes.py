"""Processes of a program's own, which end when it does, however that was, and leave Ctrl-C to it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
Process = multiprocessing.context.SpawnProcess
Start = Callable[..., Process]


@contextmanager
def processes() -> Iterator[Start]:
    """`start(function, *arguments)` calls the function in a process of its own; what is left ends with the block."""
    started = list[Process]()

    def start(function: Callable[..., None], *arguments: Any) -> Process:
        process = _context.Process(target=_call, args=(function, *arguments))
        at_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the new one inherits
        try:
            process.start()
            started.append(process)
        finally:
            signal.signal(signal.SIGINT, at_interrupt)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def _call(function: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function(*arguments)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def own_cores(count: int) -> list[list[int]]:
    """The cores of this process in so many shares, none of them empty: some have the same where there are too few."""
    cores = sorted(os.sched_getaffinity(0))
    return [cores[number % len(cores) :: count] for number in range(count)]
