"""On PYTHONPATH, this makes FFmpeg fail for files named `*-<crash, hang, exhaust or raise>-at-<frame>.*`, for real."""

import ctypes
import re
import time

import av

FAILURES = {
    "crash": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(3600),
    "exhaust": lambda: bytes(8 << 30),
    "raise": lambda: {}["what nobody thought of"],
}
av_open = av.open


class Container:
    def __init__(self, path, *arguments, **options):
        self._container = av_open(path, *arguments, **options)
        self._failure = re.search(r"-(crash|hang|exhaust|raise)-at-(\d+)\.", path)

    def demux(self, stream):
        for number, packet in enumerate(self._container.demux(stream)):
            if self._failure and number == int(self._failure[2]):
                FAILURES[self._failure[1]]()
            yield packet

    def __getattr__(self, name):
        return getattr(self._container, name)


av.open = Container
