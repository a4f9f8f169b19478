"""Proofs: a receipt stands for as long as the log of then does, and says so where nobody can tell."""

import ast
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from base64 import b64decode, b64encode
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_png import picture
from test_receipts import RECEIPT
from worlds import ClosedForm, diffusers_on_numpy_2, never, random_world

import negindex.data
from negindex import Collection, Exact, Union, merkle, offline
from negindex.checkpoint import Checkpoint
from negindex.errors import Damaged, NotAllowed, NotThere
from negindex.keys import Key
from negindex.log import Record
from negindex.offline import FALSE, HOLDS, UNTOLD
from negindex.proof import prove
from negindex.receipts import Receipt, pixels_sha256
from negindex.sampler import guard
from negindex.sampler.png import MODES, read_receipt, save_image
from negindex.tools.cli import main

pytestmark = diffusers_on_numpy_2
HOLDER, SAMPLER, STRANGER = Key.new(), Key.new(), Key.new()
KNOWN = (HOLDER.public, SAMPLER.public)
WORLD = random_world(safe=9, unsafe=24)
ALL, SOME, NOT = 0, 3, 13  # exit codes: all holds, something cannot be told, something is false


class Pictures(ClosedForm):
    """A pipeline that returns PIL images, as diffusers' own do."""

    def __call__(self, **options):
        made = super().__call__(**options)
        return SimpleNamespace(images=[Image.fromarray(x[0].mul(40).add(128).byte().numpy()) for x in made])


def made_under(negatives, batch=2, seed=0, key=SAMPLER, **options):
    """Images, and their receipts."""
    with guard(Pictures(WORLD.rows, DDIMScheduler()), negatives, gate=never, key=key, **options) as guarded:
        images = guarded.pipe(batch=batch, steps=2, seed=seed).images
        return images, guarded.receipts


def filled(path, key=HOLDER):
    collection = Collection.create(path, (1, 4, 4), "pixels", dtype="float32", key=key)
    collection.add(WORLD.unsafe.float(), [f"somebody's photograph {i}" for i in range(24)])
    return collection


def verdicts(lines):
    return {verdict for verdict, _ in lines}


def said(lines, verdict):
    return [text for found, text in lines if found == verdict]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Two images made at version 1; four versions later, and an erasure, all that a court would be handed."""
    folder = tmp_path_factory.mktemp("case")
    collection = filled(folder / "set")
    images, receipts = made_under(collection)
    for image, receipt, name in zip(images, receipts, "ab", strict=True):
        save_image(image, receipt, folder / f"{name}.png").save(folder / f"{name}.json")
    shutil.copytree(folder / "set", folder / "set of then")
    for i in range(3):
        collection.add(torch.full((1, 1, 4, 4), float(i)), [f"later {i}"])
    collection.erase([receipts[0].steps[0].heaviest[0].source_key], "a request")
    collection.checkpoint().save(folder / "kept.json")
    (folder / "log.jsonl").write_text("".join(record.to_json() + "\n" for record in collection.log()), "utf-8")
    HOLDER.public.save(folder / "holder.pub")
    SAMPLER.public.save(folder / "sampler.pub")
    collection.close()
    return folder


WHOLE = ("--log", "log.jsonl", "--checkpoint", "kept.json", "--public", "holder.pub", "--public", "sampler.pub")


def run(*words, at=None):
    before = Path.cwd()
    os.chdir(at or before)
    try:
        return CliRunner().invoke(main, [str(word) for word in words])
    finally:
        os.chdir(before)


def alone(*words, at, isolated="-I"):
    """The script from a copy, where negindex cannot be imported."""
    copy = at / "check.py"
    copy.write_text(run("prove", "--script").stdout, "utf-8")
    start = "import runpy, sys; sys.modules['negindex'] = None; sys.argv = sys.argv[1:]; "
    start += "runpy.run_path(sys.argv[0], run_name='__main__')"
    call = [sys.executable, *isolated.split(), "-c", start, str(copy), *map(str, words)]
    return subprocess.run(call, cwd=at, capture_output=True, text=True, check=False)


# -- what stands -------------------------------------------------------------------------------


def test_receipts_of_a_thousand_images_stand_after_a_hundred_versions_and_erasures(tmp_path):
    with filled(tmp_path / "set") as collection:
        receipts = [r for seed in range(4) for r in made_under(collection, 250, seed)[1]]
        fired = {row.source_key for r in receipts for step in r.steps for row in step.heaviest}
        for i in range(50):
            collection.add(torch.full((1, 1, 4, 4), float(i)), [f"later {i}"])
            collection.withdraw([f"later {i}"], "a counter-notice")
        for key in sorted(fired)[:3]:
            collection.erase([key], "a request")
        assert (len(receipts), collection.newest().version) == (1000, 104)
        log, kept = [*collection.log()], collection.checkpoint()
        assert len(set(collection.in_force(1).values())) == 24 - 3 + 1, "the names of three are gone"
    exported = offline.Log("\n".join(r.to_json() for r in log).encode(), "log")
    public = {"holder": HOLDER.public.text, "sampler": SAMPLER.public.text}
    assert prove(receipts[0], [log], checkpoints=[kept], public=KNOWN)[:1] == [
        (HOLDS, f"receipt: signed by {SAMPLER.public.id} (key {SAMPLER.public.id}), and unchanged since")
    ]
    gone = set()
    for receipt in receipts:
        lines = offline.check(json.loads(receipt.to_json()), [exported], {"kept": asdict(kept)}, public)
        assert said(lines, UNTOLD) == ["image: which one it was; none was given"]
        assert verdicts(lines) == {HOLDS, UNTOLD}
        gone |= {text for text in said(lines, HOLDS) if "erased at version" in text}
    assert len(gone) == 3


def test_all_that_a_court_is_handed_holds(case):
    for receipt, image in (("a.json", ("--image", "a.png")), ("a.png", ()), ("b.png", ("--row", 3))):
        done = run("prove", receipt, *WHOLE, *image, at=case)
        assert done.exit_code == ALL, done.stdout
        assert {line.split()[0] for line in done.stdout.splitlines()} == {HOLDS}
    assert run("prove", "a.png", "--set", "set", *WHOLE[2:], at=case).exit_code == ALL


def test_a_missing_part_is_a_thing_that_cannot_be_told(case):
    for left_out in range(0, len(WHOLE), 2):
        done = run("prove", "a.png", *WHOLE[:left_out], *WHOLE[left_out + 2 :], at=case)
        assert done.exit_code == SOME, done.stdout
        assert done.stdout.startswith(UNTOLD)
    done = run("prove", "a.json", "--json", at=case)
    assert (done.exit_code, {line["verdict"] for line in json.loads(done.stdout)}) == (SOME, {UNTOLD})


def test_another_runs_image_is_not_the_one(case):
    for receipt, image in (("a.json", "b.png"), ("b.json", "a.png")):
        done = run("prove", receipt, "--image", image, *WHOLE, at=case)
        assert (done.exit_code, done.stdout.count(FALSE)) == (NOT, 1)
        assert done.stdout.startswith("FALSE       image: has the very pixels")


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
def test_the_script_and_the_receipt_know_the_same_pixels(tmp_path, mode):
    picture(mode).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert offline.of_image(pixels_sha256(opened), tmp_path / "a.png")[0] == HOLDS
        assert opened.mode == mode


def test_rows_are_answered_for_at_the_version_of_the_receipt(case):
    done = run("prove", "a.png", *WHOLE, "--row", 24, "--row", 25, "--row", 99, at=case)
    false = [line for line in done.stdout.splitlines() if line.startswith(FALSE)]
    assert (done.exit_code, len(false)) == (NOT, 2)
    assert "row 25 was in force at version [1] (entered at version 2)" in false[0]
    assert "row 99 was in force at version [1] (in no log)" in false[1]
    assert "row 24 was in force at version [1] (entered at version 1)" in done.stdout


def test_each_set_of_a_union_is_matched_with_its_own_log(tmp_path):
    with filled(tmp_path / "one") as one, filled(tmp_path / "two") as two:
        _, (receipt, _) = made_under(Union([one, two, Exact(WORLD.safe)]), reference=Exact(-WORLD.safe))
        whole = prove(receipt, [two.log(), one.log()], public=KNOWN)
        half = prove(receipt, [one.log()], public=KNOWN)
    assert FALSE not in verdicts(whole) | verdicts(half)
    unnamed = [text for text in said(whole, UNTOLD) if text.startswith(("set exact", "log", "image"))]
    assert unnamed == said(whole, UNTOLD), "rows in memory have no log, and no checkpoint was kept"
    assert any(f"set {two.set_id} at version 1" in text for text in said(half, UNTOLD))
    assert not any(f"set {two.set_id} at version 1" in text for text in said(half, HOLDS) if "signed by" not in text)


def test_a_label_is_what_no_log_tells(tmp_path):
    with Collection.create(tmp_path / "set", (1, 4, 4), "pixels", key=HOLDER) as collection:
        collection.add(WORLD.unsafe.float(), [str(i) for i in range(24)], label="one")
        collection.add(WORLD.safe.float(), [f"s{i}" for i in range(9)], label="two")
        _, (receipt, _) = made_under(collection.where(label="two"))
        lines = prove(receipt, [collection.log()], checkpoints=[collection.checkpoint()], public=KNOWN)
    (label, image) = sorted(said(lines, UNTOLD), reverse=True)
    assert "#two at version 2: which rows stood under its label" in label
    assert (image[:6], verdicts(lines)) == ("image:", {HOLDS, UNTOLD})
    assert (receipt.sets[0].checkpoint.set_id, receipt.sets[0].checkpoint.version) == (collection.set_id, 2)


# -- signatures --------------------------------------------------------------------------------


def places(value, *before):
    """Where each plain value stands in a receipt's JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not isinstance(value, dict | list):
        yield before
    for name, one in inner:
        yield from places(one, *before, name)


def changed(value):
    """The least change of a plain value."""
    if value == "-inf":
        return -sys.float_info.max
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, float):
        return float(np.nextafter(value, np.inf))
    return value + 1 if isinstance(value, int) else ("x" if value == "" else value[:-1] + chr(ord(value[-1]) ^ 1))


def test_every_field_changed_by_the_least_breaks_the_signature(case):
    whole = json.loads((case / "a.json").read_text("utf-8"))
    assert Receipt.from_json(json.dumps(whole)).is_signed_by(SAMPLER.public)
    count = 0
    for place in places(whole):
        told = json.loads(json.dumps(whole))
        inner = told
        for part in place[:-1]:
            inner = inner[part]
        inner[place[-1]] = changed(inner[place[-1]])
        if place[-1] == "source_key":
            inner[place[-1]] = "another name"
        verdict, _ = offline.signature(told, "receipt", "receipt", {"sampler": SAMPLER.public.text})
        assert verdict == (HOLDS if place[-1] == "source_key" else FALSE), place
        read = Receipt.from_json(json.dumps(told))
        assert read.is_signed_by(SAMPLER.public) == (place[-1] == "source_key"), place
        count += 1
    assert count > 100


def test_what_is_signed_is_spelled_out():
    head, _, body = RECEIPT.signed_bytes.partition(b"\n")
    told = json.loads(body)
    assert head == b"negindex receipt 1"
    assert {"signature", "public_key"} == json.loads(RECEIPT.to_json()).keys() - told.keys()
    assert body == json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert [row["source_key"] for step in told["steps"] for row in step["heaviest"]] == [None] * 4
    point = Checkpoint("set", 3, "ab" * 32, "2025-01-02T03:04:05.000+00:00")
    said = '{"at":"2025-01-02T03:04:05.000+00:00","root":"' + "ab" * 32 + '","set_id":"set","version":3}'
    assert point.signed(HOLDER).signed_bytes == point.signed_bytes == f"negindex checkpoint 1\n{said}".encode()


def test_a_signature_goes_with_the_receipt_named_or_not_through_json_and_other_programs():
    signed = RECEIPT.bind(np.zeros((2, 2), np.uint8)).signed(SAMPLER)
    rewritten = signed.to_json().replace('"alpha": 1.0', '"alpha": 1')
    assert rewritten != signed.to_json()
    for one in (signed, signed.without_names(), Receipt.from_json(signed.to_json()), Receipt.from_json(rewritten)):
        assert one.is_signed_by(SAMPLER.public)
        assert not one.is_signed_by(STRANGER.public)
    read = offline.read(rewritten, "receipt", offline.RECEIPT)
    assert offline.signature(read, "receipt", "receipt", {})[0] == UNTOLD
    assert offline.signature(read, "receipt", "receipt", {"s": SAMPLER.public.text})[0] == HOLDS
    assert not RECEIPT.is_signed_by(SAMPLER.public)


def test_a_key_that_was_not_given_says_nothing_of_who_signed(case):
    receipt = read_receipt(case / "a.png")
    for forged in (receipt.signed(STRANGER), replace(receipt, signature="", public_key="")):
        (case / "forged.json").write_text(forged.to_json())
        done = run("prove", "forged.json", "--image", "a.png", *WHOLE, at=case)
        assert done.exit_code == SOME
        assert done.stdout.startswith("cannot tell receipt: who")


def test_another_spelling_of_a_signature_is_none():
    signed = RECEIPT.signed(SAMPLER)
    tail = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    spelled = signed.signature[:-3] + tail[tail.index(signed.signature[-3]) + 1] + "=="
    assert b64decode(spelled) == b64decode(signed.signature)
    for other in (
        replace(signed, signature=spelled),
        replace(signed, signature="ed25519:" + signed.signature),
        replace(signed, public_key=signed.public_key.removeprefix("ed25519:")),
        replace(signed, public_key="ed25519:" + b64encode(b"short").decode()),
        replace(signed, public_key="é"),
    ):
        told = json.loads(other.to_json())
        assert offline.signature(told, "receipt", "r", {"s": SAMPLER.public.text})[0] == FALSE
        assert not other.is_signed_by(SAMPLER.public)


def test_a_checkpoint_is_not_shown_as_a_receipt(case):
    point = Checkpoint.load(case / "kept.json")
    told = asdict(point)
    assert offline.signature(told, "checkpoint", "c", {"h": HOLDER.public.text})[0] == HOLDS
    assert offline.signature({**told, "steps": []}, "receipt", "c", {"h": HOLDER.public.text})[0] == FALSE


# -- bound first, then signed ------------------------------------------------------------------


def test_a_guard_with_a_key_gives_receipts_that_are_bound_and_signed(tmp_path):
    images, receipts = made_under(Exact(WORLD.unsafe))
    for number, (image, receipt) in enumerate(zip(images, receipts, strict=True)):
        saved = save_image(image, receipt, tmp_path / f"{number}.png")
        assert saved == receipt.bind(image) == receipt
        inside = read_receipt(tmp_path / f"{number}.png")
        assert inside.is_signed_by(SAMPLER.public)
        with Image.open(tmp_path / f"{number}.png") as opened:
            assert inside.matches(opened)
            assert not receipts[1 - number].matches(opened)
    assert not any(
        receipt.signature or receipt.image_sha256 for receipt in made_under(Exact(WORLD.unsafe), key=None)[1]
    )


def test_what_is_no_picture_is_signed_unbound_and_bound_with_the_key():
    pixels = np.zeros((4, 4), np.uint8)
    with guard(ClosedForm(WORLD.rows, DDIMScheduler()), Exact(WORLD.unsafe), gate=never, key=SAMPLER) as guarded:
        guarded.pipe(batch=1)
        (receipt,) = guarded.receipts
    assert (receipt.image_sha256, receipt.is_signed_by(SAMPLER.public)) == (None, True)
    with pytest.raises(NotAllowed, match="give the key"):
        receipt.bind(pixels)
    bound = receipt.bind(pixels, SAMPLER)
    assert bound.is_signed_by(SAMPLER.public)
    assert bound.matches(pixels)


def test_a_changed_image_is_saved_with_a_signed_receipt_only_by_the_key(tmp_path):
    (image, _), (receipt, _) = made_under(Exact(WORLD.unsafe))
    marked = image.copy()
    marked.putpixel((0, 0), 255 - image.getpixel((0, 0)))
    with pytest.raises(NotAllowed, match="other pixels"):
        save_image(marked, receipt, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
    assert save_image(marked, receipt, tmp_path / "a.png", key=SAMPLER).is_signed_by(SAMPLER.public)
    assert read_receipt(tmp_path / "a.png").matches(marked)


def test_generate_signs_with_a_key(tmp_path):
    folder = Path(negindex.data.__file__).parent / "digits-unet"
    SAMPLER.save(tmp_path / "sampler.key")
    with Collection.create(tmp_path / "set", (1, 8, 8), "pixels") as collection:
        collection.add(torch.rand(4, 1, 8, 8), ["somebody", "b", "c", "d"])
    words = ["--negatives", "set", "--gate", "constant:0.5", "--steps", 2, "--count", 2, "--key", "sampler.key"]
    done = run("generate", folder, *words, "--out", "out", at=tmp_path)
    assert done.exit_code == 0, done.output
    for name in ("00000", "00001"):
        inside = read_receipt(tmp_path / "out" / f"{name}.png")
        beside = Receipt.from_json((tmp_path / "out" / f"{name}.json").read_bytes())
        assert inside == beside.without_names() != beside
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert inside.is_signed_by(SAMPLER.public)
            assert inside.matches(image)
    assert b"somebody" not in (tmp_path / "out" / "00000.png").read_bytes()
    assert FALSE not in run("prove", "out/00000.png", "--set", "set", at=tmp_path).stdout


# -- a log that was changed --------------------------------------------------------------------


def edited(lines):
    return [*lines[:2], lines[2].replace('"action":"add"', '"action":"aid"'), *lines[3:]]


CHANGES = {  # what somebody did to the log, and how it is named
    "edited": (edited, "record 3 does not follow record 2"),
    "deleted": (lambda lines: [*lines[:2], *lines[3:]], "record 3 stands where record 2 belongs"),
    "reordered": (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], "record 3 stands where record 2 belongs"),
    "doubled": (lambda lines: [*lines[:3], *lines[2:]], "record 2 stands where record 3 belongs"),
    "its end cut off": (lambda lines: lines[:-1], "kept.json, version 5: the log ends at version 4"),
    "its last edited": (
        lambda lines: [*lines[:-1], lines[-1].replace('"action":"erase"', '"action":"chose"')],
        "kept.json, version 5: the log's records up to version 5 are not those of then",
    ),
    "cut to nothing": (lambda lines: lines[:1], "checkpoint in the receipt: the log ends at version 0"),
    "its first taken out": (lambda lines: lines[1:], "where its first record names the set"),
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_log_is_found_and_named(case, tmp_path, change, named):
    lines = (case / "log.jsonl").read_text("utf-8").splitlines()
    assert change(lines) != lines
    (tmp_path / "log.jsonl").write_text("\n".join(change(lines)), "utf-8")
    done = run("prove", "a.png", "--log", tmp_path / "log.jsonl", *WHOLE[2:], at=case)
    assert done.exit_code == NOT
    assert named in done.stdout + done.stderr


def rechained(records, change):
    """The log with its second record changed, and every later one made to follow, as a forger would."""
    forged = [records[0], change(records[1])]
    for record in records[2:]:
        forged.append(replace(record, previous=forged[-1].digest))
    return forged


@pytest.fixture
def records(case):
    return [Record.from_json(line) for line in (case / "log.jsonl").read_text("utf-8").splitlines()]


def test_a_forged_log_that_follows_itself_shows_against_any_checkpoint(case, records):
    forged = rechained(records, lambda record: replace(record, note="00" * 32))
    receipt, kept = read_receipt(case / "a.png"), Checkpoint.load(case / "kept.json")
    bare = with_set(replace(receipt, signature="", public_key=""), checkpoint=None)
    for shown, checkpoints in ((receipt, []), (bare, [kept])):
        assert FALSE not in verdicts(prove(shown, [records], checkpoints=checkpoints))
        (false,) = said(prove(shown, [forged], checkpoints=checkpoints), FALSE)
        assert "are not those of then" in false
    lines = prove(bare, [forged])
    assert FALSE not in verdicts(lines), "there is nothing to go by,"
    assert any("which rows it held; the receipt has no checkpoint" in text for text in said(lines, UNTOLD)), (
        "and it says so"
    )


def test_a_set_that_was_rolled_back_shows_against_the_exported_checkpoint_alone(case):
    words = ("prove", "a.png", "--set", "set of then", *WHOLE[4:])
    without, kept = run(*words, at=case), run(*words, *WHOLE[2:4], at=case)
    assert without.exit_code == SOME
    assert "whether it was cut off or rolled back; give a checkpoint kept elsewhere" in without.stdout
    assert kept.exit_code == NOT
    assert "the log ends at version 1; it was cut off, or the set rolled back" in kept.stdout


def test_a_set_rolled_back_behind_the_receipt_shows_against_the_receipt(case, records):
    lines = prove(read_receipt(case / "a.png"), [records[:1]])
    assert any("the log ends at version 0" in text for text in said(lines, FALSE))


# -- a receipt that says what is not so --------------------------------------------------------


def with_row(receipt, **other):
    """The receipt, as if another row had weighed most."""
    step = receipt.steps[0]
    heaviest = (replace(step.heaviest[0], **other), *step.heaviest[1:])
    return replace(receipt, steps=(replace(step, heaviest=heaviest), *receipt.steps[1:]))


def with_set(receipt, **other):
    return replace(receipt, sets=(replace(receipt.sets[0], **other),))


LIES = {
    "a row that came later": (lambda r: with_row(r, id=26), "row 26 was in force"),
    "a row of a set it does not state": (lambda r: with_row(r, set_id="other"), "set other: row"),
    "more rows than there were": (lambda r: with_set(r, rows=25), "25 rows were asked, of 24"),
    "fewer than none": (lambda r: with_set(r, rows=-1), "-1 rows were asked"),
    "another version": (lambda r: with_set(r, version=2), "the receipt's checkpoint is of another set or version"),
    "a version to come": (lambda r: with_set(r, version=9), "the log ends at version 5"),
    "no version": (lambda r: with_set(r, version=-1), "another set or version"),
    "a time before the version": (lambda r: replace(r, made="2001-01-01T00:00:00+00:00"), "and not after the receipt"),
    "a root of its own": (
        lambda r: with_set(r, checkpoint=replace(r.sets[0].checkpoint, root="0" * 64)),
        "are not those of then",
    ),
}


@pytest.mark.parametrize(("lie", "named"), LIES.values(), ids=LIES.keys())
def test_a_receipt_that_says_what_is_not_so_is_found_even_if_it_is_signed(case, records, lie, named):
    receipt = read_receipt(case / "a.png")
    assert FALSE not in verdicts(prove(receipt, [records], public=KNOWN))
    false = said(prove(lie(receipt).signed(SAMPLER), [records], public=KNOWN), FALSE)
    assert any(named in text for text in false), false


# -- the script --------------------------------------------------------------------------------

ASKED = {
    "all": ("a.json", *WHOLE, "--image", "a.png"),
    "a row": ("a.json", *WHOLE, "--image", "a.png", "--row", "3", "--row", "99"),
    "another image": ("b.json", *WHOLE, "--image", "a.png"),
    "nothing": ("a.json",),
    "no key": ("a.json", "--log", "log.jsonl"),
    "a log of another kind": ("a.json", "--log", "a.json"),
    "a receipt of another kind": ("log.jsonl",),
    "an image that is none": ("a.json", "--image", "log.jsonl"),
    "a key that is none": ("a.json", "--public", "log.jsonl"),
    "a file that is not there": ("a.json", "--log", "nowhere"),
}


@pytest.mark.parametrize("words", ASKED.values(), ids=ASKED.keys())
def test_the_script_alone_says_what_the_command_says(case, words):
    ours, script = run("prove", *words, at=case), alone(*words, at=case)
    assert (script.returncode, script.stderr) == (ours.exit_code, "")
    if ours.exception is not None and ours.stderr:
        assert script.stdout.startswith("cannot read: ")
        assert ours.stderr.startswith("negindex: ")
    else:
        assert script.stdout == ours.stdout


def test_the_script_needs_the_standard_library_alone(case):
    top = [n for n in ast.parse(run("prove", "--script").stdout).body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {alias.name for n in top if isinstance(n, ast.Import) for alias in n.names} | {
        n.module for n in top if isinstance(n, ast.ImportFrom)
    }
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
    bare = alone("a.json", *WHOLE, "--image", "a.png", at=case, isolated="-I -S")
    assert (bare.returncode, bare.stderr) == (SOME, "")
    assert bare.stdout.count("signature not checked: install cryptography") == 3
    assert "image: not checked: install pillow" in bare.stdout
    assert FALSE not in bare.stdout


@pytest.mark.parametrize("size", range(1, 40))
def test_the_scripts_root_is_the_trees(size):
    leaves = [bytes([i]) * i for i in range(size)]
    assert offline.root([merkle.leaf_hash(leaf) for leaf in leaves]) == merkle.root(leaves)


def test_text_that_would_steer_a_terminal_is_not_printed():
    text, code = offline.told([(FALSE, "set \x1b[2J\u202e: is"), (HOLDS, "ü")])
    assert (text, code) == ("holds       ü".join(["FALSE       set ?[2J?: is\n", ""]), NOT)


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_files_that_were_tampered_with_are_read_or_refused_by_name(case_bytes, data):
    """Never another error than CannotRead, whatever is in the place of a value."""
    receipt, log = case_bytes
    odd = st.sampled_from([None, True, -1, 1 << 70, 1e308, "", "\u0000", "9" * 5000, [], [[]], {}, [1], [[1]], "x#y"])
    if data.draw(st.booleans()):
        receipt = spoiled(receipt, data, odd)
    else:
        lines = log.split(b"\n")
        place = data.draw(st.integers(0, len(lines) - 1))
        lines[place] = spoiled(lines[place], data, odd)
        log = b"\n".join(lines)
    with contextlib.suppress(offline.CannotRead):
        told = offline.check(offline.read(receipt, "r", offline.RECEIPT), [offline.Log(log, "l")], rows=[3])
        assert offline.told(told)[1] in (SOME, NOT)


@pytest.fixture(scope="module")
def case_bytes(case):
    return (case / "a.json").read_bytes(), (case / "log.jsonl").read_bytes().strip()


def spoiled(text, data, odd):
    """JSON with one value replaced, or its bytes cut or changed."""
    if data.draw(st.booleans()):
        cut = data.draw(st.integers(0, len(text)))
        return text[:cut] + data.draw(st.binary(max_size=3)) + text[cut + data.draw(st.integers(0, 3)) :]
    told = json.loads(text)
    place = data.draw(st.sampled_from(list(places(told)) + [(name,) for name in told]))
    inner = told
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = data.draw(odd)
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    "text",
    ["", "null", "[" * 100_000, "9" * 5000, '{"a": NaN}', '{"a": "\\ud800"}', "\ufeff{}", '{"made": 1, "made": 1}'],
)
def test_what_is_no_receipt_cannot_be_read(tmp_path, text):
    (tmp_path / "r.json").write_text(text, "utf-8")
    done = run("prove", tmp_path / "r.json")
    assert (done.exit_code, done.stdout) == (NOT, "")
    assert "cannot read" in done.stderr
    assert alone("r.json", at=tmp_path).returncode == NOT


# -- checkpoints -------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_from_its_file(tmp_path):
    point = Checkpoint("set ü", 3, "ab" * 32, "2025-01-02T03:04:05.000+00:00").signed(HOLDER)
    point.save(tmp_path / "c.json")
    assert Checkpoint.load(tmp_path / "c.json") == point == Checkpoint.from_json(point.to_json())
    assert point.is_signed_by(HOLDER.public)
    assert not replace(point, version=4).is_signed_by(HOLDER.public)
    with pytest.raises(NotAllowed, match="no checkpoint is overwritten"):
        point.save(tmp_path / "c.json")
    with pytest.raises(NotThere, match="negindex checkpoint SET"):
        Checkpoint.load(tmp_path / "nowhere.json")
    with pytest.raises(NotThere, match="no directory"):
        point.save(tmp_path / "no" / "c.json")


@pytest.mark.parametrize(
    "other",
    [
        {"version": -1},
        {"version": "3"},
        {"version": True},
        {"root": "ab"},
        {"root": "AB" * 32},
        {"more": 1},
        {"at": None},
    ],
    ids=str,
)
def test_what_is_no_checkpoint_is_refused(other):
    point = Checkpoint("set", 3, "ab" * 32, "2025-01-02T03:04:05.000+00:00")
    with pytest.raises(Damaged):
        Checkpoint.from_json(json.dumps(asdict(point) | other))
    with pytest.raises(Damaged):
        Checkpoint.from_json(point.to_json()[:-1])


def test_checkpoint_exports_one_signs_it_and_leaves_the_set_as_it_is(tmp_path):
    HOLDER.save(tmp_path / "holder.key")
    with filled(tmp_path / "set", key=None) as collection:
        collection.add(torch.zeros(1, 1, 4, 4), ["later"])
        own = [collection.checkpoint(version) for version in range(3)]
    before = {p: hashlib.sha256(p.read_bytes()).digest() for p in (tmp_path / "set").rglob("*") if p.is_file()}
    plain = run("checkpoint", "set", at=tmp_path)
    assert (plain.exit_code, Checkpoint.from_json(plain.stdout)) == (0, own[2])
    assert "nobody signed it" in plain.stderr
    done = run("checkpoint", "set", "--at", 1, "--key", "holder.key", "--out", "c.json", at=tmp_path)
    assert Checkpoint.load(tmp_path / "c.json") == Checkpoint.from_json(done.stdout) == own[1].signed(HOLDER)
    assert run("checkpoint", "set", "--at", 9, at=tmp_path).exit_code == 10
    assert run("checkpoint", "set", "--out", "c.json", at=tmp_path).exit_code == 12
    after = {p: hashlib.sha256(p.read_bytes()).digest() for p in (tmp_path / "set").rglob("*") if p.is_file()}
    assert {p: after[p] for p in before if p.suffix in (".sqlite", ".h5")} == {
        p: before[p] for p in before if p.suffix in (".sqlite", ".h5")
    }


def test_a_checkpoint_that_was_signed_stays_as_it_is(case):
    STRANGER.save(case / "stranger.key")
    done = run("checkpoint", "set", "--key", "stranger.key", at=case)
    assert Checkpoint.from_json(done.stdout) == Checkpoint.load(case / "kept.json")
    assert "stays as it is" in done.stderr


def test_a_forged_count_is_named_though_the_log_follows_itself(records):
    forged = rechained(records, lambda record: replace(record, in_force=23))
    log = offline.Log("\n".join(record.to_json() for record in forged).encode(), "log")
    assert next(log.breaks()) == "record 1 counts 23 rows in force; its changes leave 24"


@pytest.mark.parametrize("version", [-1, 9])
def test_nothing_holds_at_a_version_that_the_log_does_not_have(case, records, version):
    receipt = read_receipt(case / "a.png")
    point = replace(receipt.sets[0].checkpoint, version=version)
    lines = prove(with_set(receipt, version=version, checkpoint=point), [records])
    assert not [text for text in said(lines, HOLDS) if "row" in text or "extends" in text]
    assert any(f"version {version}, checkpoint in the receipt: the log" in text for text in said(lines, FALSE))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("a.json", '"made":', '"made": "2001-01-01T00:00:00+00:00", "made":'),
        ("a.json", '"rows": 24', '"rows": ' + "9" * 4000),
        ("a.json", '+00:00",\n  "public_key"', '",\n  "public_key"'),
        ("log.jsonl", '"entered":[[1,24]]', '"entered":[[1,12,24]]'),
    ],
    ids=["a name twice", "a number beyond all", "a time of no zone", "a run of three"],
)
def test_what_could_be_read_in_two_ways_is_not_read(case, tmp_path, file, old, new):
    for name in ("a.json", "log.jsonl"):
        text = (case / name).read_text("utf-8")
        (tmp_path / name).write_text(text.replace(old, new) if name == file else text, "utf-8")
        assert (old in text) == (name == file)
    done = run("prove", "a.json", "--log", "log.jsonl", at=tmp_path)
    assert (done.exit_code, done.stdout) == (NOT, "")
    assert "cannot read" in done.stderr
