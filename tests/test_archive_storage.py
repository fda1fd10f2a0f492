"""covers: a lake in object storage: the same rows, kills, a network that goes, and many machines that read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from conftest import rows
from lakes import (
    DAY,
    DOCUMENT,
    KEYS,
    OF_THE_ARCHIVE,
    archive,
    download,
    everything,
    kill_and_look,
    names_in,
    script,
    serving,
    start,
    true_depth,
    view,
)
from sample_database import fill

if TYPE_CHECKING:
    from pathlib import Path

    from lakes import Server

pytestmark = OF_THE_ARCHIVE


def test_object_storage_holds_the_same(
    sample: Path, tmp_path: Path, bucket: str, s3_server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = view(tmp_path, sample)
    lake = f"s3://{bucket}/lake"
    assert archive(lake, "--db", sample, "--keep", "0") == 0
    copy = download(bucket, s3_server.endpoint, tmp_path / "copy")
    assert view(copy, sample) == expected
    assert archive(lake, "--check") == 0
    assert archive(lake, "--db", tmp_path / "new.db", "--restore", DAY) == 0
    other = tmp_path / "other.db"
    fill(other, markets=2, days=1, runs_per_day=2)
    (shard,) = rows(sample, "SELECT shard FROM lake")
    assert archive(lake, "--db", other, "--shard", shard["shard"]) == 74
    written = "".join(path.read_text() for path in copy.rglob("*.json"))
    output = capfd.readouterr()
    for secret in (KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in output.out + output.err + written


def test_a_bucket_that_is_not_there_or_does_not_answer_is_said(
    sample: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(sample)
    assert archive(f"s3://{bucket}-none/lake", "--db", sample) == 74
    assert "NoSuchBucket" in capsys.readouterr().err
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(
        script()["main"].__globals__, "RETRY", {"max_retries": 1, "retry_timeout": timedelta(seconds=2)}
    )
    assert archive(f"s3://{bucket}/lake", "--db", sample) == 74
    error = capsys.readouterr().err
    assert "cannot" in error
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in error
    assert everything(sample) == before


@pytest.mark.slow
def test_kills_at_every_step_lose_and_double_no_row_in_object_storage(
    tmp_path: Path, bucket: str, s3_server: Server
) -> None:
    database, copy = tmp_path / "x.db", tmp_path / "copy"
    fill(database, markets=400, days=1, levels=20)

    def files() -> set[str]:
        return names_in(bucket, s3_server.endpoint)

    kill_and_look(f"s3://{bucket}/lake", database, 12, files, lambda: download(bucket, s3_server.endpoint, copy))


@pytest.mark.parametrize("where", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_a_machine_without_ca_certificates_is_said(
    sample: Path, bucket: str, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv(where, os.devnull)
    assert archive(f"s3://{bucket}/lake", "--db", sample) == 74
    assert "cannot open: no CA certificates: install those of the system" in capsys.readouterr().err
    assert rows(sample, "SELECT * FROM archived_days") == []


def test_object_storage_that_overwrites_is_refused(
    sample: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It knows nothing of If-None-Match."""
    import obstore.store  # noqa: PLC0415

    class Forgetful:
        """A store that puts whatever it is asked not to."""

        def __init__(self, store: Any) -> None:  # noqa: ANN401
            self._store = store

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401
            return getattr(self._store, name)

        def put(self, name: str, content: object, **how: object) -> Any:  # noqa: ANN401
            return self._store.put(name, content, **{key: value for key, value in how.items() if key != "mode"})

    real = obstore.store.from_url
    monkeypatch.setattr(obstore.store, "from_url", lambda *args, **how: Forgetful(real(*args, **how)))
    before = everything(sample)
    for _ in range(2):
        assert archive(f"s3://{bucket}/lake", "--db", sample) == 78
        assert "does not refuse a second put" in capsys.readouterr().err
    assert everything(sample) == before


def test_what_object_storage_says_is_one_line_without_secrets(
    sample: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert archive(f"s3://{bucket}-none/lake", "--db", sample) == 74
    assert capsys.readouterr().err.endswith("NoSuchBucket: The specified bucket does not exist\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hunter2@127.0.0.1:9")
    monkeypatch.setitem(
        script()["main"].__globals__, "RETRY", {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
    )
    assert archive(f"s3://{bucket}/lake", "--db", sample) == 74
    error = capsys.readouterr().err
    assert "hunter2" not in error
    assert error.count("\n") == 1


def test_a_lake_without_keys_says_which_to_set(tmp_path: Path) -> None:
    lake = script()["Lake"]("s3://bucket/lake")
    with (
        pytest.raises(ValueError, match="no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        lake.lake_errors("list"),
    ):
        raise OSError(f"Error performing PUT http://169.254.169.254/latest/api/token of {tmp_path}")


@pytest.mark.slow
def test_a_network_that_goes_in_the_middle_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "x.db"
    fill(database, markets=800, days=1)
    before = everything(database)
    with serving() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        process = start(f"s3://{server.make_bucket()}/lake", database)
        while not (tmp_path / "x.db.archive" / "books.parquet").exists():
            assert process.poll() is None
            time.sleep(0.01)
        server.process.kill()
        _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors.count("\n")) == (74, 1)
    assert "cannot write" in errors or "cannot read" in errors
    assert everything(database) == before
    assert not (tmp_path / "x.db.archive").exists()
    assert archive(tmp_path / "lake", "--db", database) == 0


@pytest.mark.slow
def test_the_example_for_many_machines(two_shards: list[Path], bucket: str, s3_server: Server) -> None:
    """Two worker processes over object storage find what the files have."""
    pytest.importorskip("distributed")
    expected = true_depth(*two_shards)
    for database in two_shards:
        assert archive(f"s3://{bucket}/lake", "--db", database, "--shard", database.stem) == 0
    program = two_shards[0].with_name("depth.py")
    program.write_text(
        "\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL))
        + f"""
import json
from distributed import Client, LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        found = depth_by_dask(client, "{bucket}/lake", "{s3_server.endpoint}")
        print(json.dumps([[category, day, depth] for (category, day), depth in found.items()]))
"""
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert {(category, day): depth for category, day, depth in json.loads(done.stdout)} == pytest.approx(expected)
