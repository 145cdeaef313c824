"""The HTTP of `serve`: one page, videos in, overlays out, frames of cameras. The standard library only.

Whoever can reach the port may ask, but no other web page on their behalf: the Host header must be an address or a known
name, which another site's name that was made to lead here (DNS rebinding) is not; what changes anything must come from
this page. Names of files never reach the server; its own are random.
"""

import ipaddress
import json
import math
import re
import secrets
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from absl import logging

from data_prep.recognizer import Recognizer
from experiments.jobs import DONE, Cameras, Jobs, RefusedError

BLOCK = 1 << 16  # bytes that are read or sent at once
FRAME_BYTES = 1 << 20  # of a camera's frame
UPLOAD_SECONDS = 900.0
THREADS = 64  # of the process; more connections than that leaves room for are closed at once
HEADERS = {
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Server(ThreadingHTTPServer):
    """Serves one page about recognizers.

    Args:
        address: host and port; port 0 takes a free one.
        recognizers: what a page's runs are, by number.
        page: HTML in which `{{nonce}}` stands for the nonce of scripts and styles.
        folder: for videos and overlays; the caller removes it.
        max_bytes: of a video.
    """

    daemon_threads, request_queue_size = True, THREADS

    def __init__(
        self, address: tuple[str, int], recognizers: list[Recognizer], page: str, folder: Path, max_bytes: int
    ):
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)
        self.host, self.recognizers, self.page, self.max_bytes = address[0], recognizers, page, max_bytes
        self.jobs, self.cameras = Jobs(folder), Cameras()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return threading.active_count() < THREADS

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that is gone
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version, server_version, sys_version = "HTTP/1.1", "action_attention", ""
    timeout = 30  # seconds without a byte

    def log_message(self, *_: Any) -> None:
        """Nothing: the terminal is for what goes wrong."""

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_DELETE = do_GET

    def _handle(self) -> None:
        self.unread = 0
        try:
            self._check_who_asks()
            for method, pattern, answer in self.ROUTES:
                if method == self.command and (found := re.fullmatch(pattern, self.path)):
                    return answer(self, *found.groups())
            raise RefusedError(404, "there is nothing of that name here")
        except RefusedError as error:
            self.close_connection = True  # what else was sent may be of any kind
            self._send_json(error.status, {"error": str(error)})
        except OSError:  # the client is gone, or silent for too long
            self.close_connection = True
        except Exception:
            logging.exception("%s %s", self.command, self.path)
            self._send_json(500, {"error": "something went wrong; the terminal that serves this page says what"})

    def _check_who_asks(self) -> None:
        host = re.sub(r":[0-9]*$|[][]", "", self.headers.get("Host", "")).lower()
        if host not in ("localhost", self.server.host.lower()) and not _is_address(host):
            raise RefusedError(421, "open this page by its address; this server has no other name")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers['Host']}":
            raise RefusedError(403, "another page may not ask this")
        length = self.headers.get("Content-Length", "" if self.command == "POST" else "0")
        if "Transfer-Encoding" in self.headers or not re.fullmatch("[0-9]{1,15}", length):
            raise RefusedError(411, "say the length of what you send")
        self.unread = int(length)
        # which another site cannot send without asking first, and is not answered
        if self.command != "GET" and not re.fullmatch(r"[\w-]{16,64}", self._client):
            raise RefusedError(403, "say who you are in X-Client, 16 to 64 letters or digits")

    @property
    def _client(self) -> str:
        return self.headers.get("X-Client", "")

    def _recognizer(self, number: str) -> Recognizer:
        if int(number) >= len(self.server.recognizers):
            raise RefusedError(404, "there is no such run here; reload the page")
        return self.server.recognizers[int(number)]

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        page = self.server.page.replace("{{nonce}}", nonce).encode()
        self._send(200, "text/html; charset=utf-8", page, {"Content-Security-Policy": POLICY.format(nonce)})

    def _upload(self, run: str) -> None:
        if not 0 < self.unread <= self.server.max_bytes:
            most = f"{self.server.max_bytes / 1e6:g} MB"
            raise RefusedError(413, f"a video may have up to {most}" if self.unread else "the file is empty")
        jobs, identity = self.server.jobs, ""
        try:
            identity = jobs.begin(self._client, self._recognizer(run))
            with jobs.get(identity).video.open("wb") as file:
                for block in self._body(UPLOAD_SECONDS):
                    file.write(block)
            jobs.submit(identity)
        except BaseException as error:
            jobs.drop(identity, self._client)
            if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                raise RefusedError(507, f"the video cannot be kept here ({error.strerror})") from error
            raise
        self._send_json(201, {"video": identity})

    def _status(self, identity: str) -> None:
        self._send_json(200, self.server.jobs.status(identity))

    def _drop(self, identity: str) -> None:
        self.server.jobs.drop(identity, self._client)
        self._send_json(200, {})

    def _overlay(self, identity: str) -> None:
        """The video, or the part that is asked for: without parts a browser cannot wind it."""
        job = self.server.jobs.get(identity)
        if job.state != DONE:
            raise RefusedError(404, "this video is not finished")
        with job.overlay.open("rb") as file:
            size = file.seek(0, 2)
            part = _part(self.headers.get("Range", ""), size)
            first, last = part or (0, size - 1)
            about = {"Accept-Ranges": "bytes"} | ({"Content-Range": f"bytes {first}-{last}/{size}"} if part else {})
            self._send(206 if part else 200, "video/mp4", last + 1 - first, about)
            file.seek(first)
            for start in range(first, last + 1, BLOCK):
                self.wfile.write(file.read(min(BLOCK, last + 1 - start)))

    def _frame(self, run: str) -> None:
        if not 0 < self.unread <= FRAME_BYTES:
            raise RefusedError(413, f"a frame may have up to {FRAME_BYTES} bytes")
        try:
            seconds = float(self.headers.get("X-Time", ""))
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < 1e6:
            raise RefusedError(400, "say the frame's time in seconds in X-Time")
        jpeg = b"".join(self._body(self.timeout))
        self._send_json(200, self.server.cameras.step(self._client, self._recognizer(run), jpeg, seconds))

    def _stop(self) -> None:
        self.server.cameras.stop(self._client)
        self._send_json(200, {})

    def _body(self, seconds: float) -> Any:
        """What is sent, block by block. Raises ConnectionError if it ends early or takes longer."""
        until = time.monotonic() + seconds
        while self.unread:
            block = self.rfile.read1(min(BLOCK, self.unread))
            if not block or time.monotonic() > until:
                raise ConnectionError
            self.unread -= len(block)
            yield block

    def _send_json(self, status: int, content: dict) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: int, kind: str, content: bytes | int, headers: dict[str, str] | None = None) -> None:
        """An answer, or, if its length is given, what stands before it."""
        if self.unread <= self.server.max_bytes:  # a browser reads no answer before all that it sends is taken
            for _ in self._body(self.timeout):
                pass
        self.send_response(status)
        length = content if isinstance(content, int) else len(content)
        about = {"Content-Type": kind, "Content-Length": str(length), **HEADERS, **(headers or {})}
        for name, value in (about | ({"Connection": "close"} if self.close_connection else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if isinstance(content, bytes):
            self.wfile.write(content)

    ROUTES: ClassVar = (
        ("GET", "/", _page),
        ("POST", "/runs/([0-9]{1,4})/videos", _upload),
        ("GET", r"/videos/([\w-]{22})", _status),
        ("DELETE", r"/videos/([\w-]{22})", _drop),
        ("GET", r"/videos/([\w-]{22})/overlay\.mp4", _overlay),
        ("POST", "/runs/([0-9]{1,4})/camera", _frame),
        ("DELETE", "/camera", _stop),
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _part(asked: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header; None for any that is not understood. Raises RefusedError."""
    found = re.fullmatch("bytes=([0-9]*)-([0-9]*)", asked)
    if not found or found.groups() == ("", ""):
        return None
    start, end = found.groups()
    first = int(start) if start else max(0, size - int(end))
    last = min(int(end), size - 1) if start and end else size - 1
    if first > last:
        raise RefusedError(416, "there is no such part of the video")
    return first, last
