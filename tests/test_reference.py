"""A reference out of the pipeline itself: benign, counted to the last sample, and encoded as files are."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from worlds import diffusers_on_numpy_2

import negindex.data
from negindex import Collection, Exact
from negindex.errors import EmptySet, InvalidInput, OutOfRange, ShapeMismatch, SpaceMismatch
from negindex.sampler import reference
from negindex.sampler.encode import PixelEncoder, to_images
from negindex.sampler.pipelines import load_pipeline
from negindex.sampler.reference import ENOUGH, Away, encoder_for_samples, make_reference
from negindex.tools import digits
from negindex.tools.cli import main
from negindex.tools.demo_measures import AVOIDED, Judge

pytestmark = diffusers_on_numpy_2
FOLDER = negindex.data.__path__[0] + "/digits-unet"
COUNT, STEPS = 240, 10


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The model is so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pipe():
    loaded = load_pipeline(FOLDER)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def training():
    return digits.load()[0]


@pytest.fixture(scope="module")
def eights(training):
    return Exact(training.only(training.classes == AVOIDED).rows)


def made(path, pipe, count=COUNT, **options):
    encoder = encoder_for_samples(pipe)
    collection = Collection.open(path) if path.exists() else Collection.create(path, encoder.shape, encoder.space)
    return collection, make_reference(collection, pipe, encoder, count, steps=STEPS, batch=48, **options)


def rows(collection):
    """{source key: row} of what is in force."""
    snapshot = collection.pin()
    found = {}
    for block in snapshot.blocks(1000):
        keys = snapshot.source_keys(block.ids.tolist())
        found |= {keys[i]: row for i, row in zip(block.ids.tolist(), block.rows, strict=True)}
    return found


def tensor(collection):
    return torch.stack(list(rows(collection).values())).float().reshape(-1, 1, 8, 8)


# -- on digits ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(pipe, tmp_path_factory):
    return made(tmp_path_factory.mktemp("all") / "all.set", pipe)


def test_of_what_is_kept_fewer_are_eights_and_the_counts_add_up(pipe, training, eights, everything, tmp_path):
    judge = Judge(*digits.load())
    free, told = everything
    assert (told.kept, told.already, told.near, told.unsafe) == (COUNT, 0, 0, 0)
    assert sorted(rows(free)) == [f"reference/{i:05d}" for i in range(COUNT)]
    eight = [float((judge.read(tensor(free))[0] == AVOIDED).mean())]
    for name, away in (("near", Away(eights)), ("both", Away(eights, prior=0.3, floor=0.6))):
        kept, told = made(tmp_path / name, pipe, away=away)
        assert told.kept + told.near + told.unsafe == COUNT
        assert told.kept == len(kept)
        assert told.near > 0
        assert (told.unsafe > 0) == (away.floor is not None)
        eight.append(float((judge.read(tensor(kept))[0] == AVOIDED).mean()))
    assert eight[0] > eight[1] > eight[2], eight
    assert kept.pin().where(label="reference").origins == kept.origins
    assert len(kept.source_keys("reference")) == told.kept


def test_no_kept_row_is_within_the_radius_and_every_dropped_one_is(pipe, eights, everything, tmp_path):
    kept, told = made(tmp_path / "a.set", pipe, away=Away(eights, radius=0.8))
    distance = 0.8 * eights.moments().rms
    all_rows = rows(everything[0])
    dropped = {key: row for key, row in all_rows.items() if key not in rows(kept)}
    assert len(dropped) == told.near > 0
    for some, near in ((rows(kept), False), (dropped, True)):
        distances = torch.cdist(torch.stack(list(some.values())).float(), eights._rows.flatten(1)).amin(1)
        assert bool(((distances <= distance) == near).all())


def test_a_sample_is_encoded_as_its_file_would_be(pipe, everything, tmp_path):
    (image,) = pipe([None], num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0)).images
    image.save(tmp_path / "0.png")
    row = PixelEncoder(8, 8, 1).encode(tmp_path / "0.png").astype(np.float16).reshape(-1)
    levels = np.abs(rows(everything[0])["reference/00000"].numpy().astype(float) - row) * 127.5
    assert levels.max() < 1.2, "the batch may turn a rounding of one level"
    every = tensor(everything[0]).double() * 127.5 + 127.5
    assert float((every - every.round()).abs().max()) < 0.1, "rows hold 8-bit levels"


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("floor", [None, 0.6])
def test_interrupted_and_run_again_it_goes_on(pipe, eights, tmp_path, floor):
    away, calls = Away(eights, floor=floor), []

    def stop(done):
        calls.append(done)
        if len(calls) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        made(tmp_path / "a.set", pipe, away=away, progress=stop)
    before = rows(Collection.open(tmp_path / "a.set"))
    assert before
    collection, told = made(tmp_path / "a.set", pipe, away=away)
    assert told.already == len(before)
    assert told.kept + told.already + told.near + told.unsafe == COUNT
    after = rows(collection)
    assert all(torch.equal(after[key], row) for key, row in before.items())
    assert len(collection) == told.kept + told.already
    version = collection.newest().version
    again = made(tmp_path / "a.set", pipe, away=away)[1]
    assert again.already == len(collection) - again.kept
    assert floor is not None or (again.kept == 0 and collection.newest().version == version)


def test_no_row_goes_in_unjudged_where_there_are_enough(pipe, eights, tmp_path, monkeypatch):
    """Until there are enough, samples wait; every row in force was then read against others than itself."""
    judged, unsafe = [], Away.unsafe

    def watched(self, some, against):
        judged.append((len(some), len(against)))
        return unsafe(self, some, against)

    monkeypatch.setattr(Away, "unsafe", watched)
    _, told = made(tmp_path / "a.set", pipe, away=Away(eights, floor=0.6))
    assert sum(some for some, _ in judged) == told.kept + told.unsafe
    assert judged[0][0] + judged[1][0] >= ENOUGH
    assert judged[0] == judged[1][::-1], "half against half"
    few, told = made(tmp_path / "few.set", pipe, count=20, away=Away(eights, floor=0.6))
    assert told.unsafe == 0
    assert len(few) == told.kept == 20 - told.near


# -- what is refused, before anything is sampled -------------------------------------------------


class Prompted:
    """A pipeline that notes what it is asked."""

    def __init__(self):
        self.asked = []

    unet = SimpleNamespace(config={"sample_size": 4, "in_channels": 1})

    def __call__(self, prompt, height=None, width=None, num_inference_steps=1, generator=None, output_type="pil"):
        self.asked += prompt
        samples = torch.cat([torch.randn(1, 1, height, width, generator=g) for g in generator])
        return type("Output", (), {"images": to_images(samples)})


def test_prompts_go_around_by_the_samples_number(tmp_path):
    pipe, encoder = Prompted(), PixelEncoder(6, 10, 1)
    collection = Collection.create(tmp_path / "a.set", encoder.shape, encoder.space)
    make_reference(collection, pipe, encoder, 5, prompts=["a", "b", "c"], batch=2)
    assert pipe.asked == ["a", "b", "c", "a", "b"]
    whole = rows(collection)
    other = Collection.create(tmp_path / "b.set", encoder.shape, encoder.space)
    make_reference(other, Prompted(), encoder, 5, prompts=["a", "b", "c"], batch=5)
    assert all(torch.equal(whole[key], row) for key, row in rows(other).items())
    collection.withdraw(["reference/00004"], "to see which prompt it comes from")
    pipe.asked = []
    make_reference(collection, pipe, encoder, 5, prompts=["a", "b", "c"], batch=2)
    assert pipe.asked == ["b"], "sample 4 is asked for with its own prompt again"


def test_what_cannot_be_compared_is_refused_before_anything_is_sampled(pipe, eights, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "_sampled", lambda *_: pytest.fail("sampled"))
    other = Exact(torch.zeros(3, 1, 8, 8), space="vae 00")
    larger = Exact(torch.zeros(3, 1, 9, 9))
    none = Exact(torch.zeros(0, 1, 8, 8))
    for away, error in ((other, SpaceMismatch), (larger, ShapeMismatch), (none, EmptySet)):
        with pytest.raises(error):
            made(tmp_path / "a.set", pipe, away=Away(away))
    with pytest.raises(InvalidInput, match="takes no prompt"):
        made(tmp_path / "a.set", pipe, prompts=["a cat"])
    with pytest.raises(InvalidInput, match="give prompts"):
        made(tmp_path / "b.set", Prompted())
    wrong = Collection.create(tmp_path / "c.set", (1, 9, 9), "pixels")
    with pytest.raises(ShapeMismatch):
        make_reference(wrong, pipe, PixelEncoder(8, 8, 1), 1)
    for bad in ({"radius": -1.0}, {"radius": float("nan")}, {"floor": 0.0}):
        with pytest.raises(OutOfRange):
            Away(eights, **bad)
    with pytest.raises(OutOfRange):
        made(tmp_path / "a.set", pipe, count=0)


def test_images_of_another_size_than_the_rows_are_refused(pipe, tmp_path):
    collection = Collection.create(tmp_path / "a.set", (1, 16, 16), "pixels")
    with pytest.raises(ShapeMismatch, match="makes images of 8 × 8"):
        make_reference(collection, pipe, PixelEncoder(16, 16, 1), 1, steps=1)
    assert len(collection) == 0


# -- in latents ----------------------------------------------------------------------------------


def test_latents_are_those_of_the_decoded_image(tmp_path):
    """A pipeline with a VAE: the row is what the encoder makes of the image, not what was sampled."""
    from test_vae import kl

    class Latent:
        def __init__(self):
            self.vae, self.unet = kl(), SimpleNamespace(config={"sample_size": 8})

        @torch.no_grad()
        def __call__(self, batch_size, num_inference_steps, generator, output_type):
            z = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generator])
            images = self.vae.decode(z / self.vae.config.scaling_factor).sample
            return type("Output", (), {"images": to_images(images)})

    pipe = Latent()
    encoder = encoder_for_samples(pipe)
    collection = Collection.create(tmp_path / "a.set", encoder.shape, encoder.space, dtype="float32")
    make_reference(collection, pipe, encoder, 3, batch=2)
    drawn = pipe(1, 1, [torch.Generator().manual_seed(2)], "pil").images[0]
    drawn.save(tmp_path / "2.png")
    expected = torch.from_numpy(encoder.encode(tmp_path / "2.png")).flatten()
    torch.testing.assert_close(rows(collection)["reference/00002"], expected, rtol=1e-2, atol=1e-2)


# -- the command ---------------------------------------------------------------------------------


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_makes_the_set_and_says_what_was_dropped(tmp_path, training):
    digits.write_images(training.only(training.classes == AVOIDED), tmp_path / "digits")
    assert run("build", tmp_path / "eights.set", tmp_path / "digits", "--size", 8).exit_code == 0
    words = ["reference", "make", tmp_path / "r.set", "--pipeline", FOLDER, "--away-from", tmp_path / "eights.set"]
    words += ["--count", 30, "--steps", 5, "--batch", 15]
    done = run(*words)
    assert done.exit_code == 0, done.output
    kept = len(Collection.open(tmp_path / "r.set"))
    near = 30 - kept
    assert (
        f"{kept} rows in force (30 samples: {kept} kept, 0 already there, {near} dropped as near, 0 as" in done.stdout
    )
    again = run(*words)
    assert again.exit_code == 0
    assert f"(30 samples: 0 kept, {kept} already there, {near} dropped as near, 0 as unsafe)" in again.stdout
    status = json.loads(run("status", tmp_path / "r.set", "--json").stdout)
    assert status["rows_in_force"] == kept


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--kernel-floor", "0.6"], 2, "--away-from"),
        (["--prompts", "{tmp}/none.txt"], 10, "none.txt cannot be read"),
        (["--prompts", "{tmp}/empty.txt"], 2, "holds no prompt"),
        (["--prompts", "{tmp}/some.txt"], 2, "takes no prompt"),
        (["--away-from", "{tmp}/nowhere.set"], 10, "holds no collection"),
        (["--pipeline", "{tmp}"], 10, "holds no pipeline"),
        (["--size", "9y"], 2, "'9y'"),
        (["--radius", "-1"], 2, "--radius"),
    ],
)
def test_what_is_wrong_leaves_with_its_code_and_makes_no_set(words, code, said, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "some.txt").write_text("a cat\n")
    given = [word.format(tmp=tmp_path) for word in words]
    done = run("reference", "make", tmp_path / "r.set", "--pipeline", FOLDER, "--count", 2, *given)
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert not (tmp_path / "r.set").exists()
