"""On PYTHONPATH, this makes OpenCV fail for files named `*-<crash, hang or exhaust>-at-<frame>.*`, for real."""

import ctypes
import re
import time

import cv2

FAILURES = {"crash": lambda: ctypes.string_at(0), "hang": lambda: time.sleep(3600), "exhaust": lambda: bytes(8 << 30)}
capture = cv2.VideoCapture


class Capture:
    def __init__(self, path, *arguments):
        self._capture, self._grabbed = capture(path, *arguments), 0
        self._failure = re.search(r"-(crash|hang|exhaust)-at-(\d+)\.", path)

    def grab(self):
        if self._failure and self._grabbed == int(self._failure[2]):
            FAILURES[self._failure[1]]()
        self._grabbed += 1
        return self._capture.grab()

    def __getattr__(self, name):
        return getattr(self._capture, name)


cv2.VideoCapture = Capture
