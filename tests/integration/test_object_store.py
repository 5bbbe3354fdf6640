"""Tables on S3, over HTTP, against a server process on this machine."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pandas as pd
import pytest
from pyarrow import fs
from table_rows import append_cells, cell_row, curve_rows

from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

RUNNING = re.compile(r"Running on http://(127\.0\.0\.1:\d+)")


def open_server(address: str) -> fs.FileSystem:
    """The server's files, past the store."""
    return fs.S3FileSystem(
        access_key="me", secret_key="mine", endpoint_override=address, scheme="http", allow_bucket_creation=True
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """An S3 server with one bucket; its address."""
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            while (running := RUNNING.search(log.read_text())) is None:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            open_server(running[1]).create_dir("bucket")
            yield running[1]
        finally:
            process.kill()


@pytest.fixture
def address(server, monkeypatch, request) -> str:
    """An address of the test's own on the server, which everything here finds by the usual variables."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return f"s3://bucket/{request.node.name}"


def test_a_sweep_writes_stops_and_goes_on(address):
    first = TableStore(address)
    with first.open_for_writing():
        append_cells(first, cell_row("a"), cell_row("b", "failed"))
        append_cells(first, cell_row("c"))
        first.write_text("timeline/pack-00000.json", "{}")
    second = TableStore(address)
    with second.open_for_writing():
        assert second.finished_cell_ids() == {"a", "c"}
        second.drop_cells(["b"])
        append_cells(second, cell_row("b"))
        second.compact()
    assert TableStore(address).finished_cell_ids() == {"a", "b", "c"}
    assert sorted(pd.read_parquet(first.table_address(EPISODES_TO_MEMORIZE))["cell_id"]) == ["a", "b", "c"]


def test_a_damaged_part_is_set_aside(address, server):
    store = TableStore(address)
    append_cells(store, cell_row("a"))
    bucket = open_server(server)
    root = address.removeprefix("s3://")
    (part,) = [info.path for info in bucket.get_file_info(fs.FileSelector(f"{root}/{CURVES}")) if info.size]
    with bucket.open_output_stream(part) as file:
        file.write(b"PAR1")
    writer = TableStore(address)
    with writer.open_for_writing():
        assert writer.finished_cell_ids() == set()
        (line,) = writer.damaged
        writer.append(CURVES, curve_rows("a", 2))
        assert writer.finished_cell_ids() == {"a"}
    aside = line.rpartition(" ")[2]
    with bucket.open_input_stream(aside) as file:
        assert file.read() == b"PAR1"


def test_a_bucket_that_is_not_there_is_one_line(address):
    with pytest.raises(ValueError, match="results must be a writable address, got 's3://elsewhere/run'"):
        TableStore("s3://elsewhere/run").create()


def test_a_server_that_does_not_answer_is_one_line(address, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ValueError, match="results must be") as error:
        TableStore(address).create()
    assert "\n" not in str(error.value)
