"""A test of tables in an object store: a small S3 server on loopback, which polars reads."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import polars as pl
import pytest

from twotower.data.input_files import read_files
from twotower.data.preparation import prepare
from twotower.data.prepared.folder import prepare_folder
from twotower.data.prepared.opening import open_prepared
from twotower.errors import DataError

DATE = "2026-11-30T00:00:00.000Z"


class Bucket(BaseHTTPRequestHandler):
    """The parts of the S3 protocol that listing and reading need: ListObjectsV2, and GET with a range.

    Source: Amazon Simple Storage Service API reference.
    """

    objects: ClassVar[dict[str, bytes]] = {}
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if "list-type" in asked.query:
            self._answer(200, self._listed(parse_qs(asked.query).get("prefix", [""])[0]))
            return
        content = self.objects.get(unquote(asked.path).removeprefix("/bucket/"))
        if content is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._answer(200, content)
            return
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1 if first and last else len(content), len(content))
        self._answer(206, content[start:end], f"bytes {start}-{end - 1}/{len(content)}")

    def _listed(self, prefix: str) -> bytes:
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{DATE}</LastModified>"
            f'<ETag>"{len(content)}"</ETag><Size>{len(content)}</Size></Contents>'
            for key, content in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        head = "<Name>bucket</Name><IsTruncated>false</IsTruncated>"
        return f"<ListBucketResult>{head}{found}</ListBucketResult>".encode()

    def _answer(self, status: int, body: bytes, part: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT")
        self.send_header("ETag", f'"{len(body)}"')
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def events(day: int) -> pl.DataFrame:
    places = range(40)
    return pl.DataFrame(
        {
            "user_id": [place % 7 for place in places],
            "item_id": [place * day % 11 for place in places],
            "timestamp": [1_700_000_000 + 100 * day + place for place in places],
        }
    )


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket with a file for each of three days, and the environment that leads to it."""
    objects = {}
    for day in (1, 2, 3):
        file = BytesIO()
        events(day).write_parquet(file)
        objects[f"events/day={day}/x.parquet"] = file.getvalue()
    monkeypatch.setattr(Bucket, "objects", objects)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("address", ["s3://bucket/events/", "s3://bucket/events/*/*.parquet"])
def test_is_read_as_files_are(address: str) -> None:
    expected = pl.concat(events(day).with_columns(day=pl.lit(day, pl.Int64)) for day in (1, 2, 3))
    assert read_files(address).equals(expected)
    assert read_files(Path(address)).equals(expected)  # as options of a command come


def test_is_prepared_and_grows(tmp_path: Path) -> None:
    two = "s3://bucket/events/day=[12]/*.parquet"
    prepare_folder(two, out=tmp_path / "data")
    assert not prepare_folder(two, out=tmp_path / "data", append=True).is_changed
    found = prepare_folder("s3://bucket/events/", out=tmp_path / "data", append=True)
    assert [partition.events for partition in found.manifest.partitions] == [80, 40]
    dataset = open_prepared(tmp_path / "data").dataset
    expected = prepare(pl.concat(events(day) for day in (1, 2, 3))).dataset
    assert dataset.interactions.times is not None
    assert expected.interactions.times is not None
    assert dataset.interactions.times.tolist() == expected.interactions.times.tolist()


@pytest.mark.parametrize("address", ["s3://bucket/nothing/", "s3://bucket/nothing/*.parquet"])
def test_nothing_there_is_told(address: str) -> None:
    with pytest.raises(DataError, match=r"^interactions 's3://bucket/nothing/.* got: no file"):
        read_files(address)
