"""Uploads: what is taken, what is refused, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import io
import os
import stat
import struct
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tiltyard.api.control.v1 import model_pb2
from tiltyard.control.artifacts import ArtifactStore, Content
from tiltyard.control.names import ModelRef
from tiltyard.control.safenames import SafeNames
from tiltyard.control.store import Store
from tiltyard.control.store.store import sqlite_url
from tiltyard.control.uploads import Uploads
from tiltyard.control.zips import UploadLimits, _Budget
from tiltyard.errors import (
    DeadlineError,
    EntityNotFoundError,
    InvalidArgumentError,
    LimitError,
    ModelUploadError,
    TiltyardError,
)
from tiltyard.testing.fake_models import eventually, saved_model_bytes, zip_bytes

GRAPH = saved_model_bytes()
GOOD = {"saved_model.pb": GRAPH, "variables/variables.index": b"index", "variables/variables.data": b"data"}
REF = ModelRef("default", "m", 1)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    inner = tmp_path / "outer" / "data"
    inner.mkdir(parents=True)
    return inner


@pytest.fixture
def artifacts(data_dir: Path) -> ArtifactStore:
    return ArtifactStore(data_dir, UploadLimits())


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def put_zip(artifacts: ArtifactStore, archive: bytes, ref: ModelRef = REF) -> Content:
    upload = artifacts.receive_zip()
    try:
        for start in range(0, len(archive), 65_536):
            upload.chunk(archive[start : start + 65_536])
        content = upload.finish()
        artifacts.put(upload, content, ref)
        return content
    finally:
        upload.discard()


def put_folder(artifacts: ArtifactStore, files: list[tuple[str, bytes]], ref: ModelRef = REF) -> Content:
    upload = artifacts.receive_folder()
    try:
        for path, data in files:
            upload.begin_file(path)
            for start in range(0, len(data), 3):
                upload.chunk(data[start : start + 3])
        content = upload.finish()
        artifacts.put(upload, content, ref)
        return content
    finally:
        upload.discard()


class Entries:
    """Builds archives that no packer would."""

    def __init__(self) -> None:
        self.out = io.BytesIO()
        self.archive = zipfile.ZipFile(self.out, "w", zipfile.ZIP_DEFLATED)
        self.add("saved_model.pb", GRAPH)

    def add(self, name: str, data: bytes = b"x", mode: int = 0) -> Entries:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name  # the constructor would tidy it up
        info.external_attr = mode << 16
        info.create_system = 3
        info.compress_type = zipfile.ZIP_DEFLATED
        self.archive.writestr(info, data)
        return self

    def bytes(self) -> bytes:
        self.archive.close()
        return self.out.getvalue()


UNSAFE = [
    "../evil",
    "variables/../../evil",
    "..",
    "/etc/evil",
    "//evil",
    "C:/evil",
    "c:evil",
    "variables/C:evil",
    "..\\evil",
    "variables\\evil",
    "\\\\host\\share",
    "./evil",
    "a//evil",
    "a/./evil",
    "evil\x00.txt",
    "evil\n",
    "\x7f",
    "a" * 300,
    "/".join(["a" * 200] * 8),
]


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_name_in_a_zip_refuses_the_whole_upload(name: str, artifacts: ArtifactStore, data_dir: Path) -> None:
    before = everything(data_dir.parent)
    with pytest.raises(ModelUploadError, match="unsafe upload"):
        put_zip(artifacts, Entries().add(name).bytes())
    assert everything(data_dir.parent) == before


@pytest.mark.parametrize("name", [*UNSAFE, ""])
def test_an_unsafe_name_in_a_folder_refuses_the_whole_upload(
    name: str, artifacts: ArtifactStore, data_dir: Path
) -> None:
    before = everything(data_dir.parent)
    with pytest.raises(ModelUploadError, match="unsafe upload"):
        put_folder(artifacts, [("saved_model.pb", GRAPH), (name, b"x")])
    assert everything(data_dir.parent) == before


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
def test_an_entry_that_is_no_plain_file_refuses_the_whole_upload(
    kind: int, artifacts: ArtifactStore, data_dir: Path
) -> None:
    before = everything(data_dir)
    with pytest.raises(ModelUploadError, match="no plain file or folder"):
        put_zip(artifacts, Entries().add("variables/link", b"/etc/passwd", kind | 0o777).bytes())
    assert everything(data_dir) == before


CLASHES = [
    ("a", "a", "occurs twice"),
    ("Variables/x", "variables/x", "only in case"),
    ("variables/x", "Variables/y", "only in case"),
    ("straße", "STRASSE", "only in case"),
    ("caf\u00e9", "cafe\u0301", "how letters are encoded"),
    ("a", "a/b", "a file and a folder"),
    ("a/b", "a", "a file and a folder"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("first", "second", "words"), CLASHES)
def test_names_that_clash_refuse_the_whole_upload(
    first: str, second: str, words: str, artifacts: ArtifactStore, data_dir: Path
) -> None:
    before = everything(data_dir)
    with pytest.raises(ModelUploadError, match=words):
        put_zip(artifacts, Entries().add(first).add(second).bytes())
    with pytest.raises(ModelUploadError, match=words):
        put_folder(artifacts, [("saved_model.pb", GRAPH), (first, b"1"), (second, b"2")])
    assert everything(data_dir) == before


def test_a_folder_named_twice_is_refused() -> None:
    names = SafeNames(10)
    names.add("a/b")
    names.add("a/", folder=True)
    with pytest.raises(ModelUploadError, match="occurs twice"):
        names.add("a/", folder=True)


def bomb_by_ratio() -> bytes:
    return Entries().add("variables/zeros", bytes(64 * 1024 * 1024)).bytes()


def bomb_by_overlap() -> bytes:
    """Many names for the same packed bytes: 40 x 1 MiB from one."""
    body = Entries().add("zeros", bytes(1024 * 1024)).bytes()
    end = body.rindex(b"PK\x05\x06")
    directory = struct.unpack("<I", body[end + 16 : end + 20])[0]
    entries = body[directory:end]
    second = entries[entries.index(b"PK\x01\x02", 4) :]
    copies = entries + b"".join(second[:-5] + f"{n:05}".encode() for n in range(40))
    count = 2 + 40
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(copies), directory, 0)
    return body[:directory] + copies + tail


def bomb_by_lying() -> bytes:
    """An entry that says it is small and is not."""
    body = bytearray(Entries().add("variables/zeros", bytes(64 * 1024 * 1024)).bytes())
    size = struct.pack("<I", 64 * 1024 * 1024)
    while (at := body.find(size)) >= 0:
        body[at : at + 4] = struct.pack("<I", 100)
    return bytes(body)


@pytest.mark.parametrize("bomb", [bomb_by_ratio, bomb_by_overlap, bomb_by_lying])
def test_a_zip_bomb_is_stopped(bomb: Callable[[], bytes], artifacts: ArtifactStore, data_dir: Path) -> None:
    before = everything(data_dir)
    began = time.monotonic()
    with pytest.raises(ModelUploadError, match=r"more than 100 times|no zip archive"):
        put_zip(artifacts, bomb())
    assert time.monotonic() - began < 5
    assert everything(data_dir) == before


def test_bytes_really_written_count_not_those_declared() -> None:
    budget = _Budget(UploadLimits(max_bytes=5_000_000), packed=20_000)
    budget.look_ahead(0)  # what the archive says of itself
    budget.spend(2_000_000)
    with pytest.raises(ModelUploadError, match="more than 100 times"):
        budget.spend(1)
    budget = _Budget(UploadLimits(max_bytes=5_000_000), packed=1_000_000)
    budget.spend(5_000_000)
    with pytest.raises(LimitError, match="larger than 5000000 bytes"):
        budget.spend(1)


def test_an_archive_or_a_folder_over_the_limit_is_refused(data_dir: Path) -> None:
    artifacts = ArtifactStore(data_dir, UploadLimits(max_bytes=1_000_000))
    big = os.urandom(1_000_001)
    with pytest.raises(LimitError, match="larger than"):
        put_zip(artifacts, big)
    with pytest.raises(LimitError, match="larger than"):
        put_folder(artifacts, [("saved_model.pb", big)])
    with pytest.raises(LimitError, match="larger than"):
        put_zip(artifacts, Entries().add("variables/zeros", bytes(1_000_001)).bytes())
    assert everything(data_dir) == {"staging", "models"}


def test_too_many_entries_are_refused_before_they_cost_anything(artifacts: ArtifactStore, data_dir: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("saved_model.pb", GRAPH)
        for n in range(10_000):
            archive.writestr(f"assets/{n}", b"")
    with pytest.raises(LimitError, match="10000 entries"):
        put_zip(artifacts, packed.getvalue())
    assert everything(data_dir) == {"staging", "models"}


def test_a_directory_of_a_million_entries_is_not_even_read(artifacts: ArtifactStore) -> None:
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + f"{n:08}".encode() for n in range(200_000))
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFE, 0xFFFE, len(directory), 0, 0)
    began = time.monotonic()
    with pytest.raises(LimitError, match="directory is too large"):
        put_zip(artifacts, directory + end)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (b"", "no zip archive"),
        (b"PK\x03\x04 nonsense", "no zip archive"),
        (os.urandom(100_000), "no zip archive"),
        (zip_bytes(GOOD)[:-30], "no zip archive"),
        (zip_bytes({}), "no saved_model.pb"),
        (zip_bytes({"readme.txt": b"hello"}), "no saved_model.pb"),
        (zip_bytes({"a/saved_model.pb": GRAPH, "b/saved_model.pb": GRAPH}), "no saved_model.pb"),
        (zip_bytes({"a/b/saved_model.pb": GRAPH}), "no saved_model.pb"),
        (zip_bytes({"saved_model.pbtxt": b"text"}), "pbtxt is not read"),
        (zip_bytes({"saved_model.pb": b"\xff\xff not a message"}), "cannot be read"),
        (zip_bytes({"saved_model.pb": GRAPH[:-3]}), "cannot be read"),
        (zip_bytes({"saved_model.pb": b""}), "0 graphs tagged 'serve'"),
        (zip_bytes({"saved_model.pb": saved_model_bytes(tag="train")}), "tags found: train"),
        (zip_bytes({"saved_model.pb": GRAPH + GRAPH}), "2 graphs"),
    ],
)
def test_what_is_no_saved_model_is_refused(
    archive: bytes, words: str, artifacts: ArtifactStore, data_dir: Path
) -> None:
    before = everything(data_dir)
    with pytest.raises(ModelUploadError, match=words):
        put_zip(artifacts, archive)
    assert everything(data_dir) == before


def test_a_wrong_checksum_is_refused(artifacts: ArtifactStore, data_dir: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("saved_model.pb", GRAPH)
        archive.writestr("variables/variables.data", b"weights weights")
    broken = packed.getvalue().replace(b"weights weights", b"weights wEights")
    with pytest.raises(ModelUploadError, match="Bad CRC"):
        put_zip(artifacts, broken)
    assert everything(data_dir) == {"staging", "models"}


def test_encrypted_and_exotic_archives_say_so(artifacts: ArtifactStore) -> None:
    plain = bytearray(zip_bytes(GOOD))
    at = plain.rindex(b"PK\x01\x02")
    plain[at + 8] |= 1
    with pytest.raises(ModelUploadError, match="encrypted"):
        put_zip(artifacts, bytes(plain))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("saved_model.pb", GRAPH)
    with pytest.raises(ModelUploadError, match="other than deflate"):
        put_zip(artifacts, packed.getvalue())


def test_zip_and_folder_noise_and_top_folder_give_one_digest(artifacts: ArtifactStore, data_dir: Path) -> None:
    flat = put_zip(artifacts, zip_bytes(GOOD), ModelRef("default", "m", 1))
    nested = {f"my-model/{name}": data for name, data in reversed(GOOD.items())}
    noise = {"__MACOSX/my-model/._saved_model.pb": b"?", "my-model/.DS_Store": b"?", "my-model/assets/": b""}
    noisy = put_zip(artifacts, zip_bytes(nested | noise), ModelRef("default", "m", 2))
    folder = put_folder(artifacts, [*GOOD.items(), (".DS_Store", b"?")], ModelRef("default", "m", 3))
    other = put_folder(
        artifacts, [*list(GOOD.items())[:2], ("variables/variables.data", b"Data")], ModelRef("d", "m", 4)
    )
    assert flat.digest == noisy.digest == folder.digest != other.digest
    assert flat.size_bytes == noisy.size_bytes == folder.size_bytes == sum(map(len, GOOD.values()))
    for version in (1, 2, 3):
        kept = data_dir / "models" / "default.m" / str(version)
        assert {str(p.relative_to(kept)): p.read_bytes() for p in kept.rglob("*") if p.is_file()} == GOOD


def test_moving_bytes_between_files_changes_the_digest(artifacts: ArtifactStore) -> None:
    one = put_folder(artifacts, [("saved_model.pb", GRAPH), ("a", b"xy"), ("b", b"z")], ModelRef("d", "m", 1))
    two = put_folder(artifacts, [("saved_model.pb", GRAPH), ("a", b"x"), ("b", b"yz")], ModelRef("d", "m", 2))
    assert one.digest != two.digest


@pytest.mark.aloha
@pytest.mark.skipif("TILTYARD_ALOHA_DIR" not in os.environ, reason="TILTYARD_ALOHA_DIR is not set")
def test_the_two_tutorial_models_are_one_content(artifacts: ArtifactStore) -> None:
    folder = Path(os.environ["TILTYARD_ALOHA_DIR"])
    one = put_zip(artifacts, (folder / "aloha-cnn-lstm.zip").read_bytes(), ModelRef("default", "m", 1))
    two = put_zip(artifacts, (folder / "aloha-cnn-lstm-new.zip").read_bytes(), ModelRef("default", "m", 2))
    assert one.digest == two.digest
    assert one.size_bytes == 2_645_290


def test_what_a_crash_left_goes_at_the_next_start_and_nothing_else(artifacts: ArtifactStore, data_dir: Path) -> None:
    put_zip(artifacts, zip_bytes(GOOD), ModelRef("default", "m", 1))
    half = artifacts.receive_zip()
    half.chunk(zip_bytes(GOOD)[:50])
    moved = artifacts.receive_folder()  # crashed between the move and the row
    moved.begin_file("saved_model.pb")
    moved.chunk(GRAPH)
    artifacts.put(moved, moved.finish(), ModelRef("default", "m", 2))
    done = artifacts.receive_folder()  # crashed between the row and the end
    done.begin_file("saved_model.pb")
    done.chunk(GRAPH)
    artifacts.put(done, done.finish(), ModelRef("default", "m", 3))
    again = ArtifactStore(data_dir, UploadLimits())
    assert again.clean([ModelRef("default", "m", 1), ModelRef("default", "m", 3)]) == 3
    assert list((data_dir / "staging").iterdir()) == []
    assert sorted(path.name for path in (data_dir / "models" / "default.m").iterdir()) == ["1", "3"]
    half.discard()


# the stream of messages


@pytest.fixture
async def store(data_dir: Path) -> AsyncIterator[Store]:
    opened = Store(sqlite_url(data_dir / "control.db"), lambda: datetime.now(UTC))
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def uploads(store: Store, artifacts: ArtifactStore) -> Uploads:
    return Uploads(store, artifacts, at_once=2, idle_s=0.2)


def header(
    parent: str = "workspaces/default", model_id: str = "m", zipped: bool = True
) -> model_pb2.UploadModelRequest:
    packing = model_pb2.UPLOAD_FORMAT_ZIP if zipped else model_pb2.UPLOAD_FORMAT_FOLDER
    return model_pb2.UploadModelRequest(
        header=model_pb2.UploadHeader(parent=parent, model_id=model_id, format=packing, file_name="m.zip")
    )


def chunk(data: bytes) -> model_pb2.UploadModelRequest:
    return model_pb2.UploadModelRequest(chunk=data)


def file(path: str) -> model_pb2.UploadModelRequest:
    return model_pb2.UploadModelRequest(file=model_pb2.UploadFile(path=path))


async def stream(*messages: model_pb2.UploadModelRequest) -> AsyncIterator[model_pb2.UploadModelRequest]:
    for message in messages:
        yield message


def pieces(data: bytes) -> Iterator[model_pb2.UploadModelRequest]:
    yield from (chunk(data[at : at + 100]) for at in range(0, len(data), 100))


async def test_versions_count_from_one(uploads: Uploads, store: Store) -> None:
    first = await uploads.receive(stream(header(), *pieces(zip_bytes(GOOD))))
    second = await uploads.receive(
        stream(header(zipped=False), *(m for name, data in GOOD.items() for m in (file(name), *pieces(data))))
    )
    assert (first.ref, second.ref) == (ModelRef("default", "m", 1), ModelRef("default", "m", 2))
    assert first.digest == second.digest
    assert first.file_name == "m.zip"
    assert [v.ref.version for v in await store.list_model_versions("default", "m", None, 10)] == [2, 1]
    assert b"serving_default" in first.signatures


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], InvalidArgumentError),
        ([chunk(b"x")], InvalidArgumentError),
        ([header(), header()], InvalidArgumentError),
        ([header(), file("a")], InvalidArgumentError),
        ([header(zipped=False), chunk(b"x")], InvalidArgumentError),
        ([header(zipped=False)], ModelUploadError),
        ([header(parent="workspaces/nowhere")], EntityNotFoundError),
        ([header(parent="default")], InvalidArgumentError),
        ([header(model_id="1st")], InvalidArgumentError),
        ([header(model_id="a.b")], InvalidArgumentError),
        ([header(model_id="a" * 64)], InvalidArgumentError),
        ([header(model_id="../x")], InvalidArgumentError),
        ([header(), model_pb2.UploadModelRequest()], InvalidArgumentError),
        ([header(), chunk(b"no zip")], ModelUploadError),
    ],
)
async def test_messages_that_make_no_sense_are_refused(
    messages: list[model_pb2.UploadModelRequest], error: type[TiltyardError], uploads: Uploads, data_dir: Path
) -> None:
    with pytest.raises(error):
        await uploads.receive(stream(*messages))
    assert list((data_dir / "staging").iterdir()) == []
    assert list((data_dir / "models").iterdir()) == []


async def test_an_uploader_that_goes_away_or_falls_silent_leaves_nothing(uploads: Uploads, data_dir: Path) -> None:
    async def stalls() -> AsyncIterator[model_pb2.UploadModelRequest]:
        yield header()
        yield chunk(zip_bytes(GOOD)[:100])
        await asyncio.Event().wait()

    with pytest.raises(DeadlineError, match="silent"):
        await uploads.receive(stalls())
    cancelled = asyncio.create_task(uploads.receive(stalls()))
    await eventually(lambda: bool(list((data_dir / "staging").iterdir())))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert list((data_dir / "staging").iterdir()) == []


async def test_only_so_many_uploads_at_once(uploads: Uploads) -> None:
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[model_pb2.UploadModelRequest]:
        yield header()
        await go_on.wait()
        yield chunk(zip_bytes(GOOD))

    running = [asyncio.create_task(uploads.receive(slow())) for _ in range(2)]
    await asyncio.sleep(0.05)
    with pytest.raises(LimitError, match="2 uploads are under way"):
        await uploads.receive(stream(header(), chunk(zip_bytes(GOOD))))
    go_on.set()
    assert sorted(record.ref.version for record in await asyncio.gather(*running)) == [1, 2]


async def test_a_version_whose_row_cannot_be_written_is_taken_back(
    uploads: Uploads, store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: object, **kwargs: object) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr(store, "add_model_version", broken)
    with pytest.raises(OSError, match="on fire"):
        await uploads.receive(stream(header(), chunk(zip_bytes(GOOD))))
    assert list((data_dir / "models" / "default.m").iterdir()) == []
    assert list((data_dir / "staging").iterdir()) == []
