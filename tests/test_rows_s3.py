"""Rows in a bucket of a real S3-compatible server, over HTTP. Needs s3fs and moto[server], outside the pins."""

import logging
import shutil

import fsspec
import numpy as np
import pytest
import torch

from negindex import Collection, NoiseLevel
from negindex.errors import NegindexError, Unreachable

REASON = "`make test-services` installs s3fs and moto[server]"
pytest.importorskip("s3fs", reason=REASON)
moto_server = pytest.importorskip("moto.server", reason=REASON)
pytestmark = [pytest.mark.services, pytest.mark.filterwarnings("default")]  # theirs warn of each other

SHAPE, ROW = (4, 32, 32), 8 << 10
MARK = b"canary-canary-canary-canary-canary-canary-canary-canary-canary!!"
SECRET = "a-secret-that-is-nobodys"


def rows(count, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float16)


def asked(negatives, shape=SHAPE):
    return negatives.posterior(torch.from_numpy(rows(2, seed=5, shape=shape)).double(), NoiseLevel(0.8, 0.6))


@pytest.fixture(scope="module")
def server():
    started = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=True)
    started.start()
    yield "http://{}:{}".format(*started.get_host_and_port())
    started.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    """s3:// reaches the server, by fsspec's own configuration; an empty bucket there."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": server, "key": "somebody", "secret": SECRET})
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir("rows")
    yield files
    for one in versions(files):
        files.call_s3("delete_object", Bucket="rows", Key=one["Key"], VersionId=one["VersionId"])
    files.rmdir("rows")


def versions(files):
    """Every object of the bucket, older versions and marks of deletion too."""
    found = files.call_s3("list_object_versions", Bucket="rows")
    return [*found.get("Versions", []), *found.get("DeleteMarkers", [])]


def contents(files):
    """The bytes of all versions."""
    for one in files.call_s3("list_object_versions", Bucket="rows").get("Versions", []):
        body = files.call_s3("get_object", Bucket="rows", Key=one["Key"], VersionId=one["VersionId"])["Body"]
        yield fsspec.asyn.sync(files.loop, body.read)


def marked(path):
    made = Collection.create(path, (32,), "pixels")
    made.add(rows(20, shape=(32,)), [f"row-{i}" for i in range(20)])
    made.move_rows("s3://rows/sets")
    made.add(np.frombuffer(MARK, np.float16)[None], ["marked"])
    made.snapshot().take(torch.tensor([20]))
    return made


def test_a_set_in_a_bucket_answers_as_it_did_here(bucket, tmp_path, caplog):
    made = Collection.create(tmp_path / "set", SHAPE, "pixels")
    made.add(rows(200), [f"row-{i}" for i in range(200)])
    here = asked(made)
    made.move_rows("s3://rows/sets")
    assert made.rows_at == f"s3://rows/sets/{made.set_id}"
    for _ in range(2):
        told = asked(Collection.open(made.path))
        assert torch.equal(told.log_norm, here.log_norm)
        assert torch.equal(told.mean, here.mean)
    shutil.rmtree(made.path / "cache")
    held = Collection.open(made.path).snapshot()
    held.take(torch.tensor([0]))
    caplog.set_level(logging.INFO, "werkzeug")
    caplog.clear()
    assert np.array_equal(held.take(torch.tensor([150])).rows.numpy().reshape(SHAPE), rows(200)[150])
    (said,) = [record.getMessage() for record in caplog.records if "GET /rows/sets/" in record.getMessage()]
    assert '" 206 ' in said, "a range of the object, asked for once"
    assert made.verify() == []
    for i in range(20):
        made.add(rows(1, seed=i + 1), [f"late-{i}"])
    made.withdraw([f"row-{i}" for i in range(100)], "half")
    made.compact()
    assert (len(asked(made).mean), made.outstanding(), made.verify()) == (2, [], [])
    made.move_rows(None)
    assert (len(asked(made).mean), made.verify(), versions(bucket)) == (2, [], [])


@pytest.mark.parametrize("versioned", [False, True])
def test_erased_bytes_are_in_no_object_and_in_no_version_of_one(bucket, tmp_path, versioned):
    if versioned:
        bucket.make_bucket_versioned("rows")
    made = marked(tmp_path / "set")
    held = Collection.open(made.path).snapshot()
    held.take(torch.tensor([20]))
    assert sum(MARK in content for content in contents(bucket)) == 1
    made.erase(["marked"], "asked for")
    assert made.outstanding() == []
    assert not any(MARK in content for content in contents(bucket))
    assert not [p for p in made.path.rglob("*") if p.is_file() and MARK in p.read_bytes()]
    with pytest.raises(NegindexError, match="row 21 was erased"):
        held.take(torch.tensor([20]))
    assert len(asked(made, (32,)).mean) == 2


def test_a_server_that_is_gone_raises_and_no_secret_is_told(bucket, tmp_path, monkeypatch):
    made = marked(tmp_path / "set")
    config = {"connect_timeout": 1, "read_timeout": 1, "retries": {"max_attempts": 0}}
    dead = {"endpoint_url": "http://127.0.0.1:9", "key": "somebody", "secret": SECRET, "config_kwargs": config}
    monkeypatch.setitem(fsspec.config.conf, "s3", dead)
    with pytest.raises(Unreachable, match=r"s3://rows/sets/.* cannot be reached") as told:
        asked(Collection.open(made.path), (32,))
    assert SECRET not in str(told.getrepr(style="long", chain=True))
    assert not [p for p in made.path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
