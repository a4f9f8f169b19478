"""Bodies from anybody: what is right is read as every reader of the format does, and everything else is refused."""

import gzip
import http.client
import json
import threading
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from serving import serving
from small_sets import SHAPE, rows

from negindex import Collection, NoiseLevel, RemoteNegatives
from negindex.errors import InvalidInput
from negindex.service.wire import FLOATS, HEADER_BYTES, MEDIA_TYPE, Array, packed, unpacked
from negindex.tools.bench_times import resident

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
NAMES = ("F64", "F32", "F16", "BF16", "I64", "U8")
ANY = {name: Array(NAMES, optional=True) for name in "abc"}
ONE = torch.ones(1, dtype=torch.float64)
ASKED = {"x_t": torch.ones(1, *SHAPE), "alpha": ONE, "sigma": ONE}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 5)])
def test_arrays_arrive_as_they_were_sent(kind, shape):
    sent = {"a": torch.arange(torch.Size(shape).numel()).reshape(shape).to(kind), "b": torch.ones(3).half()}
    told, said = unpacked(bytearray(packed(sent, {"x": [1, None, "ü"]})), ANY)
    assert said == {"x": [1, None, "ü"]}
    assert told.keys() == sent.keys()
    for name, array in sent.items():
        assert told[name].dtype == array.dtype
        assert torch.equal(told[name], array)


def test_the_format_is_the_one_that_others_read_and_write():
    sent = {"a": torch.randn(3, 4).t(), "b": torch.tensor([1, 2]), "c": torch.ones(5).expand(2, 5)[:, 0:1]}
    for name, array in load(packed(sent, {})).items():
        assert torch.equal(array, sent[name])
    theirs = save({name: array.contiguous() for name, array in sent.items()}, {"negindex": '{"k": 3}'})
    told, said = unpacked(bytearray(theirs), ANY)
    assert said == {"k": 3}
    assert all(torch.equal(told[name], sent[name]) for name in sent)


def body(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytearray((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def one(**changed):
    part = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changed
    return {"__metadata__": {"negindex": "{}"}, "a": part}


HOSTILE = {
    "nothing": bytearray(),
    "no header": bytearray(8),
    "a header beyond the body": body(b"{}", length=1 << 62),
    "a header of a gigabyte": body(b"{}", length=1 << 30),
    "a header beyond the limit": body(b" " * (HEADER_BYTES + 1)),
    "no JSON": body(b"\xff\xfe" * 20),
    "a list": body([]),
    "depth": body(b"[" * 60_000),
    "a number without end": body(b'{"a": ' + b"9" * 60_000 + b"}"),
    "nothing said": body({"a": one()["a"]}, bytes(8)),
    "what is said is no object": body({"__metadata__": {"negindex": "[]"}}),
    "what is said is NaN": body({"__metadata__": {"negindex": '{"k": NaN}'}}),
    "a name twice": body(b'{"__metadata__": {"negindex": "{}"}, "a": 1, "a": 2}'),
    "a name too many": body(one() | {"z": one()["a"]}, bytes(8)),
    "a gigabyte claimed": body(one(shape=[1 << 28], data_offsets=[0, 1 << 30]), bytes(8)),
    "dimensions that overflow": body(one(shape=[1 << 40, 1 << 40]), bytes(8)),
    "nothing, in dimensions that overflow": body(one(shape=[0, 1 << 40, 1 << 40], data_offsets=[0, 0])),
    "a negative shape": body(one(shape=[-2]), bytes(8)),
    "a shape of truth": body(one(shape=[True, True]), bytes(4)),
    "a shape of floats": body(one(shape=[2.0]), bytes(8)),
    "a thousand dimensions": body(one(shape=[1] * 1000, data_offsets=[0, 4]), bytes(4)),
    "offsets that run backwards": body(one(data_offsets=[8, 0]), bytes(8)),
    "offsets beyond the body": body(one(data_offsets=[8, 16]), bytes(8)),
    "bytes left over": body(one(), bytes(9)),
    "bytes missing": body(one(), bytes(7)),
    "arrays that overlap": body(one() | {"b": one()["a"]}, bytes(8)),
    "another type": body(one(dtype="F8_E4M3"), bytes(8)),
    "an object": body(one(dtype="O"), bytes(8)),
    "more said of an array": body(one(more=1), bytes(8)),
    "a pickle": bytearray(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93."),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_body_is_refused_before_anything_is_made_of_it(hostile):
    with pytest.raises(InvalidInput, match="cannot be read as arrays"):
        unpacked(hostile, {"a": Array(FLOATS), "b": Array(FLOATS, optional=True)})


def test_types_and_dimensions_are_held_to():
    for array, wanted in ((torch.ones(2), Array(("F64",))), (torch.ones(2), Array(FLOATS, 2))):
        with pytest.raises(InvalidInput):
            unpacked(bytearray(packed({"a": array}, {})), {"a": wanted})
    with pytest.raises(InvalidInput, match=r"\['a'\] are needed"):
        unpacked(bytearray(packed({}, {})), {"a": Array(FLOATS)})


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 400))
def test_any_changed_byte_is_refused_or_changes_numbers_alone(place, value, cut):
    sent = bytearray(packed(ASKED, {"k": 3}))
    sent[place % len(sent)] = value
    for hostile in (sent, sent[:cut]):
        try:
            told, _ = unpacked(hostile, {name: Array(FLOATS) for name in ASKED})
        except InvalidInput:
            continue
        assert sum(array.nbytes for array in told.values()) <= len(hostile)


# -- over HTTP -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    with Collection.create(root / "a", SHAPE, "pixels") as made:
        made.add(rows(3), ["a", "b", "c"])
    with serving(root, body_bytes=1 << 16, body_seconds=0.5, samples=8) as url:
        yield url.removeprefix("http://")


def post(service, sent, route="posterior", **headers):
    """Status and problem of one question; header names with _ for -."""
    connection = http.client.HTTPConnection(service, timeout=10)
    named = {"Content-Type": MEDIA_TYPE} | {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request("POST", f"/v1/sets/a/{route}", bytes(sent), named)
        told = connection.getresponse()
        said = told.read()
        return told.status, json.loads(said) if "json" in told.headers["Content-Type"] else said
    finally:
        connection.close()


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bodies_are_refused_and_the_service_goes_on(service, hostile):
    status, said = post(service, hostile)
    assert (status, said["code"]) in ((422, "InvalidInput"), (413, "OutOfRange")), said
    assert post(service, packed(ASKED, {}))[0] == 200


@pytest.mark.parametrize(
    ("changed", "said", "code"),
    [
        ({"x_t": torch.full((1, *SHAPE), float("nan"))}, {}, "NotFinite"),
        ({"x_t": torch.full((1, *SHAPE), float("inf"))}, {}, "NotFinite"),
        ({"x_t": torch.ones(1, 3, 2)}, {}, "ShapeMismatch"),
        ({"x_t": torch.tensor(1.0)}, {}, "ShapeMismatch"),
        ({"x_t": torch.ones(1, *SHAPE).long()}, {}, "InvalidInput"),
        ({"x_t": torch.ones(9, *SHAPE)}, {}, "OutOfRange"),
        ({"alpha": ONE * float("nan")}, {}, "InvalidNoiseLevel"),
        ({"sigma": ONE * 0}, {}, "InvalidNoiseLevel"),
        ({"sigma": torch.ones(3, dtype=torch.float64)}, {}, "ShapeMismatch"),
        ({"alpha": ONE.repeat(2), "sigma": ONE.repeat(3)}, {}, "ShapeMismatch"),
        ({"projection": torch.ones(2, 6, dtype=torch.float64)}, {"kernel": "0" * 32}, "InvalidInput"),
        ({"projection": ONE[:, None] * float("nan")}, {"kernel": "0" * 32}, "NotFinite"),
        ({"temperatures": torch.ones(2, 3, dtype=torch.float64)}, {"kernel": "0" * 32}, "InvalidInput"),
        ({"temperatures": -torch.ones(2, 2, dtype=torch.float64)}, {"kernel": "0" * 32}, "OutOfRange"),
        ({}, {"kernel": "../../etc"}, "InvalidInput"),
        ({}, {"k": 0}, "OutOfRange"),
        ({}, {"k": 4}, "OutOfRange"),
        ({}, {"k": 1.5}, "InvalidInput"),
        ({}, {"k": "1"}, "InvalidInput"),
        ({}, {"k": True}, "InvalidInput"),
        ({}, {"error": -1.0}, "OutOfRange"),
        ({}, {"version": -1}, "InvalidInput"),
        ({}, {"version": 1 << 70}, "InvalidInput"),
        ({}, {"version": 99}, "UnknownVersion"),
        ({}, {"numbers": "float128"}, "InvalidInput"),
        ({}, {"without": "x"}, "InvalidInput"),
        ({}, {"without": "0" * 64}, "say-all"),
        ({"digests": torch.zeros(1, 31, dtype=torch.uint8)}, {"without": "0" * 64}, "InvalidInput"),
        ({"digests": torch.zeros(1, 32, dtype=torch.uint8)}, {"without": "0" * 64}, "InvalidInput"),
        ({}, {"kernel": "0" * 32}, "say-all"),
        ({}, {"more": 1}, "InvalidInput"),
        ({}, {"\ud800": 1}, "InvalidInput"),
        ({}, {"label": "\ud800"}, "InvalidInput"),
        ({}, {"label": "\0"}, "EmptySet"),
        ({}, {"label": "none"}, "EmptySet"),
    ],
)
def test_questions_that_make_no_sense_are_named(service, changed, said, code):
    status, problem = post(service, packed(ASKED | changed, said))
    assert 400 <= status < 500
    assert problem["code"] == code, problem


def test_packed_bodies_are_not_unpacked(service):
    whole = packed(ASKED, {})
    for packing, bomb in (("gzip", gzip.compress(bytes(1 << 22))), ("deflate", zlib.compress(whole)), ("br", whole)):
        assert post(service, bomb, Content_Encoding=packing)[0] == 415
    assert post(service, whole, Content_Encoding="identity")[0] == 200


def test_bodies_are_of_one_kind_and_of_a_stated_length_within_the_limit(service):
    whole = packed(ASKED, {})
    assert post(service, whole, Content_Type="application/json")[0] == 415
    assert post(service, whole, Content_Type="application/octet-stream")[0] == 415
    status, said = post(service, b"", Content_Length=str(1 << 30))
    assert (status, said["code"]) == (413, "OutOfRange")
    assert post(service, b"", Content_Length="-1")[0] == 400
    assert post(service, b"x", Content_Length="1e3")[0] == 400
    connection = http.client.HTTPConnection(service, timeout=10)
    connection.request("POST", "/v1/sets/a/posterior", iter([whole]), {"Content-Type": MEDIA_TYPE}, encode_chunked=True)
    assert connection.getresponse().status == 411
    connection.close()


def test_a_body_that_does_not_come_is_not_waited_for(service):
    before = resident()
    status, said = post(service, packed(ASKED, {})[:40], Content_Length=str(1 << 16))
    assert (status, said["code"]) == (408, "Unreachable")
    assert resident() - before < 1 << 24


def test_headers_have_a_limit_too(service):
    connection = http.client.HTTPConnection(service, timeout=10)
    connection.putrequest("GET", "/health/live")
    for number in range(40):
        connection.putheader(f"X-{number}", "x" * 1000)
    connection.endheaders()
    assert connection.getresponse().status == 431
    connection.close()


def test_what_is_not_there_is_a_problem_document_too(service):
    connection = http.client.HTTPConnection(service, timeout=10)
    for method, path, status in (
        ("GET", "/none", 404),
        ("DELETE", "/v1/sets", 405),
        ("GET", "/v1/sets/a/versions/x", 422),
    ):
        connection.request(method, path)
        told = connection.getresponse()
        assert (told.status, told.headers["Content-Type"]) == (status, "application/problem+json")
        assert json.loads(told.read())["status"] == status
    connection.close()


def test_who_asks_too_often_is_told_to_wait(tmp_path):
    with Collection.create(tmp_path / "a", SHAPE, "pixels"):
        pass
    with serving(tmp_path, rate=0.1, burst=3.0) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        seen = []
        for _ in range(5):
            connection.request("GET", "/v1/sets")
            told = connection.getresponse()
            told.read()
            seen.append((told.status, told.headers["Retry-After"] is not None))
        connection.close()
    assert seen == [(200, False)] * 3 + [(429, True)] * 2


def test_questions_that_come_together_are_answered_together_and_each_as_if_alone(tmp_path):
    with Collection.create(tmp_path / "a", (4, 32, 32), "pixels") as made:
        made.add(torch.randn(60, 4, 32, 32), [str(i) for i in range(60)])
        snapshot = made.snapshot()
        with serving(tmp_path) as url:
            remote = RemoteNegatives(url, "a").pin()
            x = torch.randn(24, 1, 4, 32, 32)
            told = [None] * len(x)
            begin = threading.Barrier(len(x))

            def ask(i):
                begin.wait()
                for _ in range(4):
                    told[i] = remote.posterior(x[i], NoiseLevel(0.5, 0.1 + i))

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(x))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for i, one_told in enumerate(told):
                alone = snapshot.posterior(x[i], NoiseLevel(0.5, 0.1 + i))
                assert torch.allclose(one_told.mean, alone.mean, atol=1e-12)
                assert torch.allclose(one_told.log_norm, alone.log_norm, rtol=1e-12)
                assert torch.equal(one_told.heaviest.ids, alone.heaviest.ids)
            figures = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
            figures.request("GET", "/metrics")
            text = figures.getresponse().read().decode()
            figures.close()
    calls = float(text.split("negindex_call_samples_count ")[1].split()[0])
    samples = float(text.split("negindex_call_samples_sum ")[1].split()[0])
    assert samples == 4 * len(x)
    assert calls < samples
