"""Getting HMDB-51 over a server that does everything wrong, out of archives that do too."""

import http.server
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path

import pytest
import rarfile

from action_attention.errors import UserError
from data_prep import hmdb51
from data_prep.hmdb51 import Source, Unpacked, download, get_dataset, incomplete, unpack

ROOT = Path(__file__).parents[1]
CONTENT = bytes(range(256)) * 20_000
ODD_NAMES = ["#2_Gum_&_(HQ)_+!!!'é_wave_u_0.avi", "Größe ~ [x]; 7_wave_1.avi"]
LINK = 0o120777


def rar(path: Path, files: dict[str, bytes], mode: int = 0o100644) -> Path:
    """A RAR 3 archive with stored files, by the format's published headers."""

    def block(kind: int, flags: int, body: bytes, data: bytes = b"") -> bytes:
        head = struct.pack("<BHH", kind, flags, 7 + len(body)) + body
        return struct.pack("<H", zlib.crc32(head) & 0xFFFF) + head + data

    blocks = [b"Rar!\x1a\x07\x00", block(0x73, 0, bytes(6))]
    for name, data in files.items():
        raw = name.encode()
        fields = struct.pack(
            "<IIBIIBBHI", len(data), len(data), 3, zlib.crc32(data), 0x21 << 16, 20, 0x30, len(raw), mode
        )
        blocks.append(block(0x74, 0x8000 | 0x200, fields + raw, data))
    path.write_bytes(b"".join([*blocks, block(0x7B, 0x4000, b"")]))
    return path


def pack(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".rar":
        return rar(path, files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Archives with HMDB-51's numbers of classes and clips: one RAR of a RAR per class, one ZIP of the lists."""
    folder = tmp_path_factory.mktemp("archives")
    per_class, lists = {}, {}
    for index in range(51):
        class_name = f"class_{index:02}"
        clips = [f"Film #{n // 4}_{class_name}_{n}.avi" for n in range(133 if index < 34 else 132)]
        per_class[f"{class_name}.rar"] = rar(
            folder / "one.rar", {f"{class_name}/{name}": name.encode() for name in clips}
        ).read_bytes()
        tags = [1] * 70 + [2] * 30 + [0] * 33
        text = "".join(f"{name} {tag} \n" for name, tag in zip(clips, tags, strict=False))
        lists |= {f"testTrainMulti_7030_splits/{class_name}_test_split{n}.txt": text.encode() for n in (1, 2, 3)}
    return rar(folder / "hmdb51_org.rar", per_class), pack(folder / "test_train_splits.zip", lists)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`; breaks off after `breaks` bytes of each answer; honours ranges and says the length, or not."""

    protocol_version = "HTTP/1.1"
    content, breaks, ranges, length, status, seen = CONTENT, None, True, True, 200, None

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.seen.append((self.path, wanted))
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0
        if self.status != 200:
            self.send_response(self.status)
        elif start and start >= len(self.content):
            self.send_response(416)
        else:
            body = self.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
            if self.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: self.breaks])
            self.close_connection = True
            return
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(monkeypatch):
    """A function from settings of `Server` to its class and its address."""
    monkeypatch.setattr(hmdb51, "PAUSE_SECONDS", 0.001)
    running = []

    def start(**settings):
        handler = type("Handler", (Server,), {"seen": [], **settings})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(server)
        return handler, f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def source(address, content=CONTENT, size=5_120_000):
    return Source(f"{address}/file.zip", sha256(content).hexdigest(), size)


@pytest.mark.parametrize(("size", "length"), [(len(CONTENT), True), (None, True), (len(CONTENT), False)])
def test_a_connection_that_breaks_again_and_again_is_resumed_where_it_broke(serve, tmp_path, size, length):
    handler, address = serve(breaks=1 << 20, length=length)
    path = download(source(address, size=size), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [wanted for _, wanted in handler.seen] == [None, *(f"bytes={n << 20}-" for n in range(1, 5))]
    assert tree(tmp_path).keys() == {"file.zip"}
    assert download(source(address), tmp_path) == path
    assert len(handler.seen) == 5


def test_what_a_stopped_download_left_is_not_downloaded_again(serve, tmp_path):
    handler, address = serve()
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:1000])
    assert download(source(address), tmp_path).read_bytes() == CONTENT
    (tmp_path / "file.zip").rename(tmp_path / "file.zip.part")  # stopped after the last byte
    assert download(source(address), tmp_path).read_bytes() == CONTENT
    assert handler.seen == [("/file.zip", "bytes=1000-"), ("/file.zip", f"bytes={len(CONTENT)}-")]


def test_a_server_without_ranges_sends_all_again(serve, tmp_path):
    handler, address = serve(ranges=False)
    (tmp_path / "file.zip.part").write_bytes(b"x" * 1000)
    assert download(source(address), tmp_path).read_bytes() == CONTENT
    assert len(handler.seen) == 1


def test_a_file_that_changed_since_the_download_began_starts_again(serve, tmp_path):
    handler, address = serve()
    (tmp_path / "file.zip.part").write_bytes(b"x" * 1000)
    assert download(source(address), tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in handler.seen] == ["bytes=1000-", None]


def test_wrong_bytes_and_wrong_sizes_never_pass(serve, tmp_path):
    _, address = serve(content=CONTENT[::-1])
    with pytest.raises(UserError, match="another sha256"):
        download(source(address), tmp_path)
    with pytest.raises(UserError, match=r"has 5,120,000 bytes, not 99"):
        download(source(address, size=99), tmp_path)
    assert tree(tmp_path) == {}
    (tmp_path / "file.zip").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"file\.zip has another sha256; delete it, or give it with --archive"):
        download(source(address), tmp_path)


def test_a_server_that_never_sends_more_is_given_up_and_what_came_is_kept(serve, tmp_path):
    handler, address = serve(status=503)
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:1000])
    with pytest.raises(hmdb51.requests.HTTPError):
        download(source(address), tmp_path)
    assert len(handler.seen) == hmdb51.FRUITLESS_TRIES
    assert tree(tmp_path) == {"file.zip.part": CONTENT[:1000]}


def test_the_second_source_is_used_where_the_first_fails(serve, tmp_path, archives):
    videos, lists = archives
    _, gone = serve(status=404)
    _, first = serve(content=videos.read_bytes(), breaks=200_000)
    _, second = serve(content=lists.read_bytes())

    def of(address, path):
        return Source(f"{address}/{path.name}", sha256(path.read_bytes()).hexdigest())

    sources = {"videos": (of(gone, videos), of(first, videos)), "splits": (of(second, lists),)}
    assert get_dataset(tmp_path, sources=sources)
    assert incomplete(tmp_path) == {}
    assert (tmp_path / "videos/class_50/Film #0_class_50_3.avi").read_bytes() == b"Film #0_class_50_3.avi"


def test_what_cannot_be_downloaded_is_said_with_what_to_do_by_hand(serve, tmp_path):
    _, gone = serve(status=404)
    sources = {"videos": (source(gone), Source("http://127.0.0.1:9/o.rar", "0")), "splits": (source(gone),)}
    with pytest.raises(UserError) as raised:
        get_dataset(tmp_path / "new", sources=sources)
    assert str(raised.value) == (
        f"no download of {gone}/file.zip (HTTP 404), http://127.0.0.1:9/o.rar (ConnectionError), {gone}/file.zip "
        f"(HTTP 404); get file.zip or o.rar, and file.zip by hand, and put them into {tmp_path / 'new' / 'archives'} "
        "or give each with --archive=FILE"
    )


def run(*arguments):
    command = [sys.executable, "-m", "data_prep.hmdb51", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_from_the_users_archives_to_a_dataset_and_not_twice(tmp_path, archives):
    arguments = ("--output", tmp_path, *(f"--archive={path}" for path in archives))
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "is now complete, 6,766 clips of 51 classes" in done.stdout
    assert done.stderr.count("is none of the known archives") == 2
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert len(stamps) == 6766 + 153 + 51 + 2
    done = run(*arguments)
    assert "is already complete" in done.stdout
    assert done.stderr == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == stamps


def test_killed_while_unpacking_it_goes_on_and_never_passes_for_complete(tmp_path, archives):
    arguments = ("--output", tmp_path, *(f"--archive={path}" for path in archives))
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep.hmdb51", *map(str, arguments)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "videos" / "class_05").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert incomplete(tmp_path).keys() == {"videos", "splits"}
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.avi")}
    assert get_dataset(tmp_path, archives)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert {path.name for path in tmp_path.iterdir()} == {"videos", "splits"}
    assert not list(tmp_path.rglob("*.part"))


def test_a_dataset_with_too_few_or_too_many_clips_is_refused(tmp_path, archives):
    get_dataset(tmp_path, archives)
    clip = tmp_path / "videos" / "class_00" / "Film #0_class_00_0.avi"
    clip.write_bytes(b"")
    other = pack(tmp_path / "other.zip", {"class_01/a.avi": b"1"})
    surplus = [tmp_path / "videos" / "class_01" / f"{name}.avi" for name in "bc"]
    for path in surplus:
        path.write_bytes(b"1")
    with pytest.raises(UserError, match=r"has 6,767 clips of 51 classes, HMDB-51 6,766 of 51: move away"):
        get_dataset(tmp_path, [other])
    for path in surplus:
        path.unlink()
    (tmp_path / "videos" / "class_01" / "Film #0_class_01_0.avi").unlink()
    with pytest.raises(UserError, match=r"not HMDB-51 yet: .*videos has 6,765 clips of 51 classes"):
        get_dataset(tmp_path, [other])


@pytest.mark.parametrize("kind", ["zip", "rar"])
@pytest.mark.parametrize("nested", [False, True])
def test_names_with_any_letters_keep_them(tmp_path, kind, nested):
    files = {f"org/wave/{name}": name.encode() for name in ODD_NAMES}
    if nested:  # a class's archive whose clips lie in no folder
        inner = pack(tmp_path / f"inner.{kind}", dict(zip(ODD_NAMES, files.values(), strict=True)))
        files = {f"org/wave.{kind}": inner.read_bytes()}
    unpack(pack(tmp_path / f"a.{kind}", files), tmp_path / "new")
    assert tree(tmp_path / "new") == {f"videos/wave/{name}": name.encode() for name in ODD_NAMES}


def test_zip_names_without_the_utf8_flag_are_utf8_or_else_cp437(tmp_path):
    path = pack(tmp_path / "a.zip", {"wave/Größe.avi": b"1", "wave/caf@.avi": b"2"})
    data = path.read_bytes().replace("Größe".encode(), b"Gr\xc3\xb6\xc3\x9fe").replace(b"caf@", b"caf\x82")
    for at in [found.start() for found in re.finditer(rb"PK\x01\x02|PK\x03\x04", data)]:
        flags = at + (8 if data[at + 2] == 1 else 6)
        data = data[:flags] + b"\0\0" + data[flags + 2 :]
    path.write_bytes(data)
    unpack(path, tmp_path / "new")
    assert tree(tmp_path / "new").keys() == {"videos/wave/Größe.avi", "videos/wave/café.avi"}


def test_what_is_neither_clip_nor_list_is_left_and_the_same_file_twice_is_one(tmp_path):
    files = {
        "readme.txt": b"",
        "__MACOSX/wave/._a.avi": b"junk",
        "wave/._b.avi": b"junk",
        "__MACOSX/._wave.rar": b"junk",
    }
    files |= {"wave/a.avi": b"12", "again/wave/a.avi": b"12"}
    done = Unpacked()
    unpack(pack(tmp_path / "a.zip", files), tmp_path / "new", done)
    assert tree(tmp_path / "new") == {"videos/wave/a.avi": b"12"}
    assert (done.videos, done.splits) == (2, 0)
    for other in (b"123", b"21"):
        with pytest.raises(UserError, match="two different files"):
            unpack(pack(tmp_path / "b.zip", files | {"third/wave/a.avi": other}), tmp_path / "new")


@pytest.mark.parametrize("kind", ["zip", "rar"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", ["/etc/wave/a.avi", "wave/../../a.avi", "..\\wave\\a.avi", "C:\\wave\\a.avi"])
def test_names_that_point_outside_are_refused_before_anything_is_written(tmp_path, kind, nested, name):
    path = pack(tmp_path / f"a.{kind}", {"wave/good.avi": b"1", name: b"2"})
    if nested:
        path = pack(tmp_path / f"outer.{kind}", {f"wave.{kind}": path.read_bytes()})
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match=rf"is not unpacked: '.*{re.escape(name[-5:])}' in it points outside"):
        unpack(path, tmp_path / "new")
    assert tree(tmp_path / "new") == {}


def test_links_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("wave/a.avi")
        link.external_attr = LINK << 16
        archive.writestr(link, "/etc/passwd")
    for archive in (path, rar(tmp_path / "a.rar", {"wave/a.avi": b"/etc/passwd"}, LINK)):
        with pytest.raises(UserError, match=r"'wave/a\.avi' in it is a link"):
            unpack(archive, tmp_path / "new")


def test_archives_that_would_fill_the_disk_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hmdb51, "UNPACKED_BYTES", 10_000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("wave/a.avi", bytes(6_000))
        archive.writestr("wave/b.avi", bytes(6_000))
    outer = pack(tmp_path / "outer.zip", {"wave.zip": path.read_bytes()})
    for archive in (path, outer):
        with pytest.raises(UserError, match=r"would fill 12,\d+ bytes, more than 10,000"):
            unpack(archive, tmp_path / "new")
    assert not list((tmp_path / "new").rglob("*.avi"))
    # one that announces less than it holds
    lying = path.read_bytes().replace(struct.pack("<I", 6_000), struct.pack("<I", 60))
    path.write_bytes(lying)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(path, tmp_path / "new")
    assert not list((tmp_path / "new").rglob("*.avi"))
    deep = path
    for level in range(4):
        deep = pack(tmp_path / f"{level}.zip", {f"{level}.zip": deep.read_bytes()})
    with pytest.raises(UserError, match="one archive too deep"):
        unpack(deep, tmp_path / "new")


@pytest.mark.parametrize("kind", ["zip", "rar"])
def test_broken_archives_are_named(tmp_path, kind):
    path = pack(tmp_path / f"a.{kind}", {"wave/a.avi": CONTENT[:5000], "wave/b.avi": b"1"})
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.{kind} cannot be unpacked"):
        unpack(path, tmp_path / "new")
    path.write_bytes(data[:900])
    with pytest.raises(UserError, match=rf"a\.{kind} cannot be unpacked"):
        unpack(path, tmp_path / "new")
    path.write_bytes(data[:50])  # within the first member's header
    with pytest.raises(UserError, match=rf"a\.{kind} cannot be unpacked"):
        unpack(path, tmp_path / "new")
    path.write_bytes(b"<html>")
    with pytest.raises(UserError, match=rf"a\.{kind} is no ZIP or RAR archive"):
        unpack(path, tmp_path / "new")
    assert not list((tmp_path / "new").rglob("*.avi"))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_whatever_a_broken_member_makes_the_libraries_raise_names_the_archive_and_leaves_nothing(tmp_path, method):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("wave/ü.avi", CONTENT[:5000])
    data = path.read_bytes()
    packed = data.index("ü.avi".encode()) + 6  # the member's first byte
    for place, byte in ((packed + 12, 0xFF), (packed - 6, 0xFF), (data.rindex("ü.avi".encode()), 0xFF)):
        path.write_bytes(data[:place] + bytes([byte]) + data[place + 1 :])
        with pytest.raises(UserError, match=r"a\.zip cannot be unpacked"):
            unpack(path, tmp_path / "new")
        assert tree(tmp_path / "new") == {}


def test_a_machine_without_a_rar_program_is_told_what_to_install(tmp_path, monkeypatch):
    path = rar(tmp_path / "a.rar", {"wave/a.avi": b"12"})
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(rarfile, "CURRENT_SETUP", None)
    monkeypatch.setattr(rarfile, "FORCE_TOOL", True)  # as for a compressed file
    monkeypatch.setattr(rarfile, "USE_EXTRACT_HACK", False)
    with pytest.raises(UserError, match=r"to unpack a\.rar, install unar \(free\) or unrar"):
        unpack(path, tmp_path / "new")
