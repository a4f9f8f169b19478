"""What people have: folders, lists, WebDataset tars, arrays, other sets; each input once, within limits."""

import gc
import gzip
import io
import json
import os
import struct
import tarfile
import time
import tracemalloc
from itertools import islice

import h5py
import numpy as np
import pytest
from corpora import ledger, png, run, tar
from safetensors.numpy import save_file

from negindex import Collection
from negindex.errors import Damaged, ImageRefused, InvalidInput, NotThere, OutOfRange, ShapeMismatch
from negindex.sampler.arrays import rows_in
from negindex.sampler.sources import Limits, shard_of, sources_of

PARTLY, USAGE, NOT_THERE, INTEGRITY = 3, 2, 10, 13
SHAPE = (4, 2, 2)


def items(*paths, shape=SHAPE, **options):
    return [item for source in sources_of(paths, **options) for item in source.items(shape)]


def told(*paths, **options):
    """{key: refusal} of the inputs."""
    return {item.key: item.refusal for item in items(*paths, **options)}


def info(name, kind=tarfile.REGTYPE, **fields):
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made


# -- tars --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_shard_is_one_input_a_key_with_its_caption_and_label(tmp_path, name, mode, form):
    long = "deep/" * 30 + "000003"
    members = [
        ("000001.png", png(1)),
        ("000001.txt", b"a cat\n"),
        ("000001.cls", b"7"),
        ("folder/000002.json", json.dumps({"label": "dog", "caption": "two", "other": [1]}).encode()),
        ("folder/000002.jpg", png(2, form="JPEG")),
        ("only.txt", b"no image"),
        (f"{long}.webp", png(3, form="WEBP")),
    ]
    found = items(tar(tmp_path / name, members, mode, format=form))
    assert [item.key for item in found] == [f"{name}/000001", f"{name}/folder/000002", f"{name}/{long}"]
    assert [(item.label, item.caption) for item in found] == [("7", "a cat"), ("dog", "two"), (None, "")]
    assert [item.read() for item in found] == [members[0][1], members[4][1], members[6][1]]


def test_a_build_of_a_shard_keeps_its_labels_and_the_ledger_its_captions(tmp_path):
    shard = tar(
        tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"threes"), ("1.txt", "Kätzchen".encode()), ("2.png", png(2))]
    )
    done = run("build", tmp_path / "a.set", shard, "--size", 8, "--ledger", tmp_path / "run.jsonl")
    assert done.exit_code == 0, done.output
    collection = Collection.open(tmp_path / "a.set")
    assert collection.shape == (1, 8, 8), "grey shards make a grey set"
    assert collection.source_keys() == ["a.tar/1", "a.tar/2"]
    assert collection.source_keys(label="threes") == ["a.tar/1"]
    assert ledger(tmp_path / "run.jsonl")[1]["a.tar/1"]["caption"] == "Kätzchen"


def test_shards_inside_a_folder_are_found_among_its_images(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "b").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(1))
    (folder / "c.png").write_bytes(png(2))
    tar(folder / "b" / "x.tar", [("1.png", png(3))])
    assert [item.key for item in items(folder)] == ["corpus/a.png", "corpus/b/x.tar/1", "corpus/c.png"]


HOSTILE = {
    "up": (info("../out.png"), "leads out of the archive"),
    "up later": (info("a/../../out.png"), "leads out of the archive"),
    "absolute": (info("/etc/out.png"), "leads out of the archive"),
    "link": (info("a.png", tarfile.SYMTYPE, linkname="/etc/passwd"), "a link"),
    "hard link": (info("a.png", tarfile.LNKTYPE, linkname="b.png"), "a link"),
    "device": (info("a.png", tarfile.CHRTYPE, devmajor=1, devminor=5), "a device"),
    "block device": (info("a.png", tarfile.BLKTYPE), "a device"),
    "pipe": (info("a.png", tarfile.FIFOTYPE), "a pipe"),
    "unknown": (info("a.png", b"Z"), "of an unknown kind"),
    "sparse": (info("a.png", tarfile.GNUTYPE_SPARSE), "a sparse file"),
    "sparse by pax": (info("a.png", pax_headers={"GNU.sparse.major": "1"}), "a sparse file"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_member_is_refused_by_name_and_its_neighbours_go_in(tmp_path, what):
    """Case 15: and nothing is written, inside the folder or out of it."""
    member, why = HOSTILE[what]
    place = tmp_path / "in" / "side"
    place.mkdir(parents=True)
    shard = tar(place / "a.tar", [("0.png", png(1)), member, ("1.png", png(2))], format=tarfile.PAX_FORMAT)
    before = sorted(tmp_path.rglob("*"))
    found = told(shard)
    (refused,) = {key: said for key, said in found.items() if said}.items()
    assert refused[0] == f"a.tar/{member.name}"
    assert why in refused[1]
    assert {"a.tar/0", "a.tar/1"} < set(found)
    assert sorted(tmp_path.rglob("*")) == before


def test_more_entries_than_the_limit_end_the_archive_by_name_and_soon(tmp_path):
    block = info("x").tobuf()
    (tmp_path / "a.tar").write_bytes(block * 300_000 + bytes(1024))
    began = time.monotonic()
    found = told(tmp_path / "a.tar", limits=Limits(entries=1000))
    assert time.monotonic() - began < 2
    assert list(found) == ["a.tar"]
    assert "more than 1,000 entries" in found["a.tar"]


def test_a_bomb_ends_by_name_soon_and_in_little_memory(tmp_path):
    """2 GiB of zeros, by gzip 2 MB: the member is refused by its header, the archive where it grows 200 times."""
    with gzip.open(tmp_path / "a.tgz", "wb", compresslevel=1) as file:
        file.write(info("0.png", size=2 << 30).tobuf())
        for _ in range(400):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    began = time.monotonic()
    found = told(tmp_path / "a.tgz")
    assert time.monotonic() - began < 10
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert list(found) == ["a.tgz"]
    assert "grows more than 200 times" in found["a.tgz"]


def test_a_member_beyond_the_limit_of_bytes_is_refused_by_its_header(tmp_path):
    shard = tar(tmp_path / "a.tar", [("0.png", bytes(5000)), ("1.png", png(1))])
    found = told(shard, limits=Limits(bytes=4000))
    assert "5,000 bytes; the limit is 4,000" in found["a.tar/0.png"]
    assert found["a.tar/1"] == ""


def whole(tmp_path):
    return tar(tmp_path / "a.tar", [(f"{i}.png", png(i)) for i in range(3)]).read_bytes()


def flip(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


BROKEN = {
    "empty": lambda c: b"",
    "no tar": lambda c: b"not a tar" * 100,
    "cut in a header": lambda c: c[:1300],
    "cut in a member": lambda c: c[:600],
    "cut between members": lambda c: c[:1024],
    "a changed header": lambda c: flip(c, 1024 + 5),
    "a size below nought": lambda c: info("x").tobuf()[:124] + b"\xff" * 12 + c[136:],
    "an endless name": lambda c: info("x", tarfile.GNUTYPE_LONGNAME, size=1 << 40).tobuf() + c,
    "an extended header that does not add up": lambda c: (
        info("x", tarfile.XHDTYPE, size=9).tobuf() + b"99 path=x" + bytes(503) + c
    ),
    "a size that is none": lambda c: info("x", tarfile.XHDTYPE, size=12).tobuf() + b"12 size=-5\n\n" + bytes(500) + c,
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_damaged_archive_is_named_and_what_came_before_goes_in(tmp_path, how):
    (tmp_path / "a.tar").write_bytes(BROKEN[how](whole(tmp_path)))
    found = told(tmp_path / "a.tar")
    assert "is damaged at byte" in found.pop("a.tar")
    assert all(not said for said in found.values())


def test_a_damaged_gzip_is_named(tmp_path):
    packed = gzip.compress(whole(tmp_path))
    for content in (packed[:-20], packed[: len(packed) // 2], b"no gzip at all", flip(packed, len(packed) // 2)):
        (tmp_path / "a.tgz").write_bytes(content)
        assert "is damaged at byte" in told(tmp_path / "a.tgz")["a.tgz"]


def test_names_that_hide_an_image_are_refused_not_passed_over(tmp_path):
    shard = tar(tmp_path / "a.tar", [("photo.v1.jpg", png(1)), ("b.png", png(2)), ("b.jpg", png(3)), ("b.npy", b"x")])
    found = told(shard)
    assert "ends at the first dot" in found["a.tar/photo.v1.jpg"]
    assert "a second image under the key 'b'" in found["a.tar/b.jpg"]
    assert found["a.tar/b"] == ""
    assert len(found) == 3


def test_a_long_shard_is_read_in_flat_memory(tmp_path):
    with open(tmp_path / "a.tar", "wb") as file:
        for number in range(5000):
            file.write(info(f"{number}.png", size=67).tobuf() + bytes(512))
        file.write(bytes(1024))
    (source,) = sources_of([tmp_path / "a.tar"])
    gc.collect()
    tracemalloc.start()
    assert sum(1 for _ in source.items(SHAPE)) == 5000
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


# -- lists -------------------------------------------------------------------------------------


def test_a_list_names_files_from_its_own_folder_on(tmp_path, monkeypatch):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "ä b.png").write_bytes(png(1))
    (tmp_path / "else.png").write_bytes(png(2))
    lines = ["sub/ä b.png", "", str(tmp_path / "else.png"), str(tmp_path / "data" / "sub" / "ä b.png"), "gone.png"]
    (tmp_path / "data" / "list.txt").write_text(
        "\r\n".join([*lines, "sub", "x.tar", "a\0b.png", "pipe.png"]), encoding="utf-8"
    )
    os.mkfifo(tmp_path / "data" / "pipe.png")  # which would wait for a writer
    found = items(f"@{tmp_path}/data/list.txt")
    assert [item.key for item in found[:4]] == ["sub/ä b.png", f"{tmp_path}/else.png"[1:], "sub/ä b.png", "gone.png"]
    assert [item.read() for item in found[:3]] == [png(1), png(2), png(1)]
    assert [bool(item.refusal) for item in found] == [False] * 4 + [True] * 3 + [False]
    with pytest.raises(ImageRefused, match=r"pipe\.png is no file but"):
        found[7].read()
    done = run("build", tmp_path / "a.set", "--list", tmp_path / "data" / "list.txt", "--size", 8, "--json")
    assert done.exit_code == PARTLY
    said = json.loads(done.stdout)
    assert [said[name] for name in ("in", "duplicate", "refused", "failed", "inputs")] == [2, 1, 4, 1, 8]


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotThere, match=r"list\.txt is no list"):
        sources_of([f"@{tmp_path}/list.txt"])


# -- arrays ------------------------------------------------------------------------------------


def rows(count=5, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(dtype)


def saved(tmp_path, kind, array):
    path = tmp_path / f"latents.{kind}"
    if kind == "npy":
        np.save(path, array)
    elif kind == "safetensors":
        save_file({"latents": array}, path)
    else:
        with h5py.File(path, "w") as h5:
            h5["rows"] = array
    return path


@pytest.mark.parametrize("kind", ["npy", "safetensors", "h5"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ready_rows_go_in_as_they_are_stored(tmp_path, kind, dtype):
    path = saved(tmp_path, kind, rows(dtype=dtype))
    done = run("build", tmp_path / "a.set", path, "--space", "vae x")
    assert done.exit_code == 0, done.output
    collection = Collection.open(tmp_path / "a.set")
    keys = [f"{path.name}/{i}" for i in range(5)]
    assert collection.source_keys() == keys
    assert (collection.rows_under(keys) == rows().astype(np.float16)).all()
    assert "(0 added, 5 already there, 0 refused)" in run("add", tmp_path / "a.set", path).stdout


def test_bfloat16_is_widened(tmp_path):
    wide = rows().view(np.uint32) & 0xFFFF0000
    bits = (wide >> 16).astype(np.uint16)
    header = json.dumps({"x": {"dtype": "BF16", "shape": bits.shape, "data_offsets": [0, bits.nbytes]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bits.tobytes())
    assert (rows_in(tmp_path / "a.safetensors") == wide.view(np.float32)).all()


def test_rows_take_their_keys_from_a_file(tmp_path):
    path = saved(tmp_path, "npy", rows(3))
    (tmp_path / "keys.txt").write_text("b\na\nc\n")
    assert run("build", tmp_path / "a.set", path, "--keys", tmp_path / "keys.txt", "--space", "v").exit_code == 0
    collection = Collection.open(tmp_path / "a.set")
    assert (collection.rows_under(["a"])[0] == rows(3)[1].astype(np.float16)).all()
    (tmp_path / "keys.txt").write_text("b\na\n")
    with pytest.raises(ShapeMismatch, match="2 keys for 3 rows"):
        sources_of([path], keys=tmp_path / "keys.txt")
    with pytest.raises(InvalidInput, match="there are 0"):
        sources_of([], keys=tmp_path / "keys.txt")


def test_an_array_for_a_new_set_must_say_what_its_rows_are(tmp_path):
    path = saved(tmp_path, "npy", rows())
    done = run("build", tmp_path / "a.set", path)
    assert done.exit_code == USAGE
    assert "--pipeline, or the --space" in done.stderr
    assert not (tmp_path / "a.set").exists()


def test_case_2_four_bad_rows_of_a_thousand_are_named_and_the_rest_goes_in(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    good = rows(1000)
    bad = {17: np.zeros((4, 2, 3), np.float32), 18: good[18] * np.nan, 500: good[500] * np.inf, 999: good[999] * 0}
    for place in range(1000):
        np.save(folder / f"{place}.npy", bad.get(place, good[place]))
    (folder / "list.txt").write_text("\n".join(f"{place}.npy" for place in range(1000)))
    collection = Collection.create(tmp_path / "a.set", SHAPE, "vae x")
    done = run("add", collection.path, f"@{folder}/list.txt", "--ledger", tmp_path / "run.jsonl")
    assert done.exit_code == PARTLY
    assert "996 rows in force (996 added, 0 already there, 4 refused)" in done.stdout
    outcomes, entries = ledger(tmp_path / "run.jsonl")
    reasons = {key: entry["reason"] for key, entry in entries.items() if entry["outcome"] == "refused"}
    wanted = {"17.npy": "shape (4, 2, 3)", "18.npy": "NaN", "500.npy": "Inf", "999.npy": "nothing but zeros"}
    assert reasons.keys() == wanted.keys()
    assert all(wanted[key] in reasons[key] for key in wanted)
    assert len(outcomes) == 1000
    assert collection.source_keys() == sorted(f"{i}.npy" for i in range(1000) if i not in bad)


def test_a_row_beyond_the_stored_type_is_named(tmp_path):
    array = rows(3)
    array[1, 0, 0, 0] = 1e6
    done = run("build", tmp_path / "a.set", saved(tmp_path, "npy", array), "--space", "v")
    assert done.exit_code == PARTLY
    assert "latents.npy/1: a row that holds Inf, or values beyond float16's 65504" in done.stderr


def external(path, tmp_path):
    (tmp_path / "secret").write_bytes(rows().tobytes())
    with h5py.File(path, "w") as h5:
        h5.create_dataset("rows", (5, *SHAPE), np.float32, external=[(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)])


def linked(path, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as h5:
        h5["rows"] = rows()
    with h5py.File(path, "w") as h5:
        h5["rows"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/rows")


def soft(path, tmp_path):
    with h5py.File(path, "w") as h5:
        h5["latents"] = rows()
        h5["rows"] = h5py.SoftLink("/latents")


def packed(path, tmp_path):
    with h5py.File(path, "w") as h5:
        h5.create_dataset("rows", data=rows(), compression="gzip")


def a_view(path, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as h5:
        h5["rows"] = rows()
    layout = h5py.VirtualLayout((5, *SHAPE), np.float32)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "rows", (5, *SHAPE))
    with h5py.File(path, "w") as h5:
        h5.create_virtual_dataset("rows", layout)


def a_group(path, tmp_path):
    with h5py.File(path, "w") as h5:
        h5["rows/inner"] = rows()


@pytest.mark.parametrize("make", [external, linked, soft, packed, a_view, a_group])
def test_hdf5_that_reads_elsewhere_is_refused_unread(tmp_path, make):
    """Case 8."""
    make(tmp_path / "a.h5", tmp_path)
    with pytest.raises(Damaged, match=r"link to elsewhere|no contiguous data set"):
        rows_in(tmp_path / "a.h5")
    assert list(told(tmp_path / "a.h5")) == ["a.h5"]


class Unpickled(Exception):
    pass


def explode():
    raise Unpickled


class Bomb:
    def __reduce__(self):
        return explode, ()


def pickled():
    file = io.BytesIO()
    np.save(file, np.array([Bomb()], object), allow_pickle=True)
    return file.getvalue()


def safetensors(**said):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **said}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


def as_npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.npy", pickled(), "object"),
        ("a.npy", as_npy(rows())[:-9], "cannot be read"),
        ("a.npy", b"", "cannot be read"),
        ("a.npy", as_npy(np.arange(6).reshape(3, 2)), "holds int64"),
        ("a.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "a header of"),
        ("a.safetensors", safetensors(data_offsets=[0, 1 << 50]), "cannot be read"),
        ("a.safetensors", safetensors(data_offsets=[-8, 0]), "cannot be read"),
        ("a.safetensors", safetensors(shape=[4], data_offsets=[0, 16]), "cannot be read"),
        ("a.safetensors", safetensors(shape=[-2, -1]), "cannot be read"),
        ("a.safetensors", safetensors(dtype="I64"), "holds I64"),
        ("a.safetensors", b"\x02\0\0\0\0\0\0\0{}", "holds nothing"),
        ("a.h5", b"no hdf5", "cannot be read"),
    ],
)
def test_an_array_that_is_none_is_named(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    found = told(tmp_path / name)
    assert list(found) == [name]
    assert why in found[name]


def test_of_several_arrays_the_one_named_rows_is_meant(tmp_path):
    save_file({"rows": rows(), "ids": np.arange(5)}, tmp_path / "a.safetensors")
    assert len(rows_in(tmp_path / "a.safetensors")) == 5
    save_file({"a": rows(), "b": rows()}, tmp_path / "b.safetensors")
    with pytest.raises(InvalidInput, match="holds 'a', 'b'"):
        rows_in(tmp_path / "b.safetensors")


# -- other sets, and shares of all ---------------------------------------------------------------


def a_set(path, count, shape=SHAPE, space="vae x", dtype="float16"):
    collection = Collection.create(path, shape, space, dtype=dtype)
    labels = ["odd", None] * (count // 2)
    keys = [f"k{i}" for i in range(count)]
    collection.add(rows(count)[:, : shape[0]], keys, label=labels, embeddings=np.eye(count, 3))
    return collection


def test_another_set_goes_in_row_by_row_with_labels_and_embeddings(tmp_path):
    other = a_set(tmp_path / "other.set", 6)
    other.withdraw(["k3"], "r")
    done = run("build", tmp_path / "a.set", other.path)
    assert done.exit_code == 0, done.output
    collection = Collection.open(tmp_path / "a.set")
    assert collection.source_keys() == other.source_keys()
    assert collection.source_keys("odd") == other.source_keys("odd")
    assert sorted(collection.digests().values()) == sorted(other.digests().values())
    assert collection.segments()[0].embedding == 3
    assert (collection.space, collection.shape, collection.dtype) == (other.space, other.shape, other.dtype)


def test_a_set_of_another_space_or_shape_is_refused_before_anything_changes(tmp_path):
    a_set(tmp_path / "other.set", 4)
    one = a_set(tmp_path / "one.set", 4, space="vae y")
    two = a_set(tmp_path / "two.set", 4, shape=(2, 2, 2))
    for target, said in ((one, "space 'vae x'"), (two, "rows of shape (4, 2, 2)")):
        for command in ("add", "merge", "build"):
            done = run(command, target.path, tmp_path / "other.set")
            assert done.exit_code == USAGE
            assert said in done.stderr
        assert target.newest().version == 1
    assert run("merge", one.path, one.path).exit_code == 12


def test_shares_are_told_by_keys_alone_and_cover_all(tmp_path):
    found = items(saved(tmp_path, "npy", rows(200)))
    shares = [{item.key for item in found if item.within(index, 4)} for index in (1, 2, 3, 4)]
    assert sum(map(len, shares)) == len(set().union(*shares)) == 200
    assert min(map(len, shares)) > 30
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(OutOfRange, match="shard"):
            shard_of(wrong)


def test_sources_are_read_only_as_far_as_they_are_asked(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\n" * 1_000_000)
    (source,) = sources_of([], lists=[tmp_path / "list.txt"])
    began = time.monotonic()
    assert len(list(islice(source.items(SHAPE), 3))) == 3
    assert time.monotonic() - began < 0.5
