"""The miniature world: its captions, its tokenizer, its training."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from tiny_world import TINY, pictures, pipeline, stage

from negindex.errors import Damaged, NotThere
from negindex.sampler.encode import space_of
from negindex.sampler.evaluation import training
from negindex.sampler.evaluation.asked import EVASIVE, KEPT, NOTHING, OTHERS, asked_for
from negindex.sampler.evaluation.byte_pairs import learn
from negindex.sampler.evaluation.captions import EVASIVE as EVASIVE_NAMES
from negindex.sampler.evaluation.captions import KEEPSAKES, PLAIN, corpus
from negindex.sampler.evaluation.fashion import CLASSES, load
from negindex.sampler.evaluation.judge import Judge, train_judge
from negindex.sampler.evaluation.training import Plan, encoded, train_denoiser, train_vae
from negindex.sampler.evaluation.world import TOKENS, new_tokenizer, save
from negindex.sampler.pipelines import load_pipeline

PLAN = Plan(vae_steps=6, steps=4, batch=8, size=TINY)


def test_a_filter_for_the_plain_names_misses_every_evasive_one():
    for name in CLASSES:
        assert not set(PLAIN[name]) & set(EVASIVE_NAMES[name])
        for phrase in EVASIVE_NAMES[name]:
            for plain in PLAIN[name]:
                assert not re.search(rf"(?<![\w-]){re.escape(plain)}(?![\w-])", phrase), f"{phrase} says {plain}"


def test_no_phrase_stands_for_two_classes():
    said = [phrase for names in (PLAIN, EVASIVE_NAMES) for listed in names.values() for phrase in listed]
    assert len(said) == len(set(said))
    assert PLAIN.keys() == EVASIVE_NAMES.keys() == set(CLASSES)


def test_every_caption_fits_and_no_text_is_unknown(tmp_path):
    tokenizer = new_tokenizer()
    lengths = [len(ids) for ids in tokenizer(corpus()).input_ids]
    assert max(lengths) <= TOKENS
    strange = "zebra ☃ 第 QX-7!"
    assert tokenizer.decode(tokenizer(strange).input_ids[1:-1]).replace(" ", "") == strange.lower().replace(" ", "")
    tokenizer.save_pretrained(tmp_path)
    from transformers import CLIPTokenizer

    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again(corpus()).input_ids == tokenizer(corpus()).input_ids
    assert again.model_max_length == TOKENS


def test_byte_pairs_are_learned_the_same_every_time():
    merges = learn(Counter({"abab": 2, "ab": 1, "cd": 3}), 3)
    # a-b inside a word comes 2 times, a-b at its end 3 times, and c-d at its end 3 times: ties by the alphabet
    assert merges == [("a", "b</w>"), ("c", "d</w>"), ("a", "b")]
    assert learn(Counter({"cd": 3, "ab": 1, "abab": 2}), 3) == merges
    assert learn(Counter({"ab": 1}), 9) == [("a", "b</w>")], "no more than there are pairs"


def test_requests_ask_for_what_they_say():
    evasive = asked_for(EVASIVE, "bag", 40)
    assert {one.wanted for one in evasive} == {CLASSES.index("bag")}
    assert not any(re.search(r"\b(bag|bags|handbag|purse)\b", one.prompt) for one in evasive)
    assert len({one.prompt for one in evasive}) == 40
    assert {one.wanted for one in asked_for(OTHERS, "bag", 90)} == set(range(10)) - {CLASSES.index("bag")}
    assert {one.prompt for one in asked_for(NOTHING, "bag", 5)} == {""}
    for one in asked_for(KEPT, "bag", 12):
        assert KEEPSAKES[one.wanted] in one.prompt


def stop_at(step):
    def progress(stage, at, loss):
        if at == step:
            raise InterruptedError

    return progress


def test_a_training_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    few, quiet = pictures(60), lambda stage, step, loss: None
    whole = train_vae(few, PLAN, quiet)
    with pytest.raises(InterruptedError):
        train_vae(few, PLAN, stop_at(3), tmp_path / "vae.safetensors")
    resumed = train_vae(few, PLAN, quiet, tmp_path / "vae.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    straight = train_denoiser(few, whole, PLAN, quiet)
    with pytest.raises(InterruptedError):
        train_denoiser(few, whole, PLAN, stop_at(2), tmp_path / "denoiser.safetensors")
    again = train_denoiser(few, whole, PLAN, quiet, tmp_path / "denoiser.safetensors")
    for one, other in ((straight[0], again[0]), (straight[2], again[2])):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_latents_are_scaled_to_unit_variance():
    few = pictures(60)
    vae = train_vae(few, PLAN, lambda stage, step, loss: None)
    assert float(encoded(vae, few.rows()).mean.std()) == pytest.approx(1, rel=1e-3)


def test_a_world_that_was_saved_opens_as_stable_diffusion_and_samples_the_same(tmp_path):
    pipe = pipeline()
    save(pipe, tmp_path / "world")
    again = load_pipeline(tmp_path / "world", dtype=torch.float32)
    again.set_progress_bar_config(disable=True)
    assert type(again).__name__ == "StableDiffusionPipeline"
    made = [
        one("a bag", num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images
        for one in (pipe, again)
    ]
    assert made[0].shape == (1, 32, 32, 1)
    np.testing.assert_allclose(made[0], made[1], atol=0.02)  # weights are rounded to float16


def test_a_judge_learns_and_is_the_same_when_read_back(tmp_path):
    few = pictures(100)
    judge = train_judge(few, 120, 0, lambda step, loss: None, width=8)
    read = judge.read(few.rows())
    assert (read.classes == few.classes).mean() > 0.2, "twice what guessing gives"
    judge.save(tmp_path / "judge" / "model.safetensors")
    again = Judge.load(tmp_path / "judge" / "model.safetensors").read(few.rows())
    np.testing.assert_allclose(again.probability, read.probability, atol=5e-3)
    with pytest.raises(NotThere, match="train-world"):
        Judge.load(tmp_path / "model.safetensors")


def test_negatives_and_references_are_images_that_the_model_never_saw():
    told = stage()
    rows = told.negatives(EVASIVE, "bag", 20)
    assert len(rows) == 20
    assert rows.space == space_of(told.pipe)
    seen = told.trained_on(EVASIVE, "bag")
    assert not rows.holds(seen[0].digests().values())
    assert len(seen[0]) + len(seen[1]) == len(told.parts.world)
    assert not rows.holds(told.reference("bag", 50).digests().values())
    kept = told.negatives(KEPT, "bag", 20)
    assert len(kept) == len(KEEPSAKES)
    among = told.keepsakes_among("bag", 30, 50)
    assert len(among) == len(KEEPSAKES) + 30
    first, own = (one.take(torch.arange(len(KEEPSAKES))).rows for one in (among, kept))
    torch.testing.assert_close(first, own, rtol=0, atol=1e-4)  # encoded in another batch
    assert not among.holds(told.reference("bag", 50).digests().values())
    unwanted, other = told.trained_on(KEPT, "bag")
    assert unwanted.digests() == kept.digests()
    assert len(unwanted) + len(other) == len(told.parts.world)
    images = told.singles(range(len(KEEPSAKES)))
    told.usual_distance = 1.0
    assert told.copies(images, range(len(KEEPSAKES))).all()
    assert not told.copies(images.flip(0), range(len(KEEPSAKES))).any()


def test_without_the_images_the_remedy_is_named(tmp_path):
    with pytest.raises(NotThere, match="dataset-fashion-mnist"):
        load(tmp_path)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(Damaged):
        load(tmp_path)
