"""Receipts: what stood behind each image, as plain data that nobody can change unnoticed."""

import json
import math
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from worlds import ClosedForm, diffusers_on_numpy_2, never, random_world

from negindex import Collection, Exact, Kernel, Union
from negindex.keys import Key
from negindex.receipts import HeavyRow, MissingSet, Receipt, SetStated, Step
from negindex.sampler import Between, Constant, SafeDenoising, guard

pytestmark = diffusers_on_numpy_2

STEP = Step(
    1.0, 2.0, -3.0, 1.0, 0.0, -math.inf, 0.5, (HeavyRow("set", 7, "key ü", -3.5), HeavyRow("set", 9, None, -4.0))
)
RECEIPT = Receipt(
    made="2025-01-02T03:04:05+00:00",
    sets=(SetStated("set", 3, 20),),
    reference=(SetStated("exact:1", 0, 5),),
    kernel="literal",
    kernel_fingerprint="e3b0",
    gate="ratio, prior 0.1",
    rule="paired",
    window="always",
    scheduler="DDIMScheduler",
    steps=(STEP, replace(STEP, log_odds=2.0)),
    degraded_steps=0,
    libraries={"torch": "2", "negindex": "0"},
)


def guarded_receipts(negatives, batch=2, steps=3, **options):
    """The receipts of one call of a pipeline over a small world."""
    pipe = ClosedForm(random_world().rows, DDIMScheduler())
    with guard(pipe, negatives, **options) as guarded:
        pipe(batch=batch, steps=steps)
        return guarded.receipts


# -- as data -----------------------------------------------------------------------------------


def test_sets_that_were_left_out_stand_in_a_receipt_and_change_no_other():
    left_out = replace(RECEIPT, missing=(MissingSet("5a" * 16, "Unreachable", "negatives", 3),))
    assert json.loads(left_out.to_json())["missing"][0]["steps"] == 3
    assert Receipt.from_json(left_out.to_json()) == left_out
    assert left_out.digest != RECEIPT.digest
    assert Receipt.from_json(RECEIPT.to_json().replace('"made":', '"missing": [], "made":', 1)).digest == RECEIPT.digest


def test_a_receipt_survives_json():
    """Everything comes back, infinities as text."""
    told = json.loads(RECEIPT.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    expected = json.loads(json.dumps(asdict(RECEIPT)).replace("-Infinity", '"-inf"'))
    assert told == {name: value for name, value in expected.items() if name != "missing"}
    assert told["steps"][0]["log_odds"] == "-inf"
    assert told["steps"][0]["heaviest"][0]["source_key"] == "key ü"
    assert json.loads(RECEIPT.to_json(indent=None)) == told


def test_a_saved_receipt_is_its_json(tmp_path):
    RECEIPT.save(tmp_path / "receipt.json")
    assert (tmp_path / "receipt.json").read_text(encoding="utf-8") == RECEIPT.to_json() + "\n"


CHANGES = {
    "made": "2025-01-02T03:04:06+00:00",
    "sets": (SetStated("set", 4, 20),),
    "reference": (),
    "kernel": "tempered",
    "kernel_fingerprint": "e3b1",
    "gate": "ratio, prior 0.2",
    "rule": "other",
    "window": "never",
    "scheduler": "DDPMScheduler",
    "steps": (replace(STEP, log_norm=-3.0000000000000004), replace(STEP, log_odds=2.0)),
    "degraded_steps": 1,
    "libraries": {"torch": "2", "negindex": "1"},
    "image_sha256": "00",
    "copies": "within 0.5",
    "missing": (MissingSet("set", "Unreachable", "negatives", 1),),
}


def test_the_digest_is_the_same_signed_and_without_names():
    signed = RECEIPT.signed(Key.new())
    assert signed.digest == signed.without_names().digest == RECEIPT.digest
    assert [row.source_key for row in signed.without_names().steps[0].heaviest] == [None, None]


@pytest.mark.parametrize("field", [f.name for f in fields(Receipt) if f.name not in ("signature", "public_key")])
def test_the_digest_changes_with_every_field(field):
    assert replace(RECEIPT, **{field: CHANGES[field]}).digest != RECEIPT.digest


def test_the_digest_is_of_content_alone():
    assert replace(RECEIPT, libraries=dict(reversed(RECEIPT.libraries.items()))).digest == RECEIPT.digest
    assert len(RECEIPT.digest) == 64


# -- bound to an image -------------------------------------------------------------------------


def image(mode="RGB", size=(5, 4), seed=0):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def test_a_receipt_matches_the_image_it_was_bound_to_and_no_other(tmp_path):
    made = image()
    bound = RECEIPT.bind(made)
    assert bound.matches(made)
    assert bound.matches(np.asarray(made))
    assert replace(bound, image_sha256=None) == RECEIPT
    made.save(tmp_path / "a.png", compress_level=9)
    made.save(tmp_path / "a.bmp")
    assert all(bound.matches(Image.open(tmp_path / name)) for name in ("a.png", "a.bmp"))
    changed = made.copy()
    changed.putpixel((0, 0), tuple(value ^ 1 for value in made.getpixel((0, 0))))
    others = [changed, image(seed=1), made.convert("RGBA"), made.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    assert not any(bound.matches(other) for other in others)


def test_the_same_bytes_in_another_shape_do_not_match():
    pixels = np.arange(24, dtype=np.uint8)
    bound = RECEIPT.bind(pixels.reshape(4, 6))
    assert bound.matches(pixels.reshape(4, 6))
    assert not bound.matches(pixels.reshape(6, 4))
    assert not bound.matches(pixels.reshape(4, 6).view(np.int8))


def test_an_unbound_receipt_matches_nothing():
    assert not RECEIPT.matches(image())


# -- of a guarded call -------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_there_is_one_receipt_an_image_and_one_entry_a_step(batch):
    world = random_world()
    receipts = guarded_receipts(Exact(world.unsafe), batch, steps=4, reference=Exact(world.safe), prior=0.3)
    assert [len(receipt.steps) for receipt in receipts] == [4] * batch
    assert len({receipt.digest for receipt in receipts}) == batch
    for receipt in receipts:
        assert (receipt.gate, receipt.rule, receipt.window) == ("ratio, prior 0.3", "paired", "always")
        assert (receipt.scheduler, receipt.kernel, receipt.degraded_steps) == ("DDIMScheduler", "literal", 0)
        assert receipt.kernel_fingerprint == Kernel().fingerprint
        assert receipt.libraries.keys() >= {"negindex", "torch", "diffusers", "numpy", "python"}
        for step in receipt.steps:
            assert (step.captured, step.stated_error, len(step.heaviest)) == (1.0, 0.0, 5)
            assert step.alpha**2 + step.sigma**2 == pytest.approx(1.0)
            weights = [row.log_weight for row in step.heaviest]
            assert weights == sorted(weights, reverse=True)
            assert step.log_norm == pytest.approx(float(np.logaddexp.reduce(weights)))
        assert receipt.steps[0].correction > 0
        json.loads(receipt.to_json())


def test_no_call_no_receipt():
    world = random_world()
    with guard(ClosedForm(world.rows, DDIMScheduler()), Exact(world.unsafe), gate=never) as guarded:
        assert guarded.receipts == []


def test_what_was_put_together_is_stated():
    world, kernel = random_world(), Kernel([(1.0, 4.0)])
    (receipt, _) = guarded_receipts(
        Exact(world.unsafe), gate=Constant(0.5), rule=SafeDenoising(0.4), window=Between(0.5, 20.0), kernel=kernel
    )
    assert (receipt.gate, receipt.rule) == ("constant, beta 0.5", "safe-denoiser, beta <= 0.4")
    assert (receipt.window, receipt.kernel) == ("0.5 <= s <= 20", kernel.name)
    assert (receipt.reference, receipt.kernel_fingerprint) == ((), kernel.fingerprint)
    for step in receipt.steps:
        acts = 0.5 <= step.sigma / step.alpha <= 20
        assert step.log_odds == (pytest.approx(math.log(0.5)) if acts else -math.inf)
        assert (step.correction > 0) == acts
    (unnamed, _) = guarded_receipts(Exact(world.unsafe), gate=never)
    assert unnamed.gate == "never"


def test_rows_are_named_by_their_source_keys_across_a_union(tmp_path):
    world = random_world()
    with Collection.create(tmp_path / "set", (1, 4, 4), "pixels", dtype="float32") as collection:
        collection.add(world.unsafe[:2].float(), ["a", "b"])
        loose = Exact(world.unsafe[2:])
        receipts = guarded_receipts(Union([collection, loose]), reference=Exact(world.safe))
        named = {(r.set_id, r.id, r.source_key) for receipt in receipts for s in receipt.steps for r in s.heaviest}
        own, other = collection.set_id, loose.origins[0].set_id
        keyed = {(own, int(i), key) for i, key in collection.pin().source_keys(list(collection.digests())).items()}
        assert {key for _, _, key in keyed} == {"a", "b"}
        assert named == keyed | {(other, i, None) for i in range(3)}
        assert [(s.set_id, s.version) for s in receipts[0].sets] == [(own, 1), (other, 0)]


def test_equal_sets_state_equal_names_and_others_do_not():
    rows = torch.ones(3, 2)
    assert Exact(rows).origins == Exact(rows.clone()).origins
    assert len({Exact(r).origins for r in (rows, rows * 2, rows.double(), rows[:2])}) == 4
