"""The copy gate over 7,406 single images, six of which the model that ships has memorised.

Prints, under ``pytest -s``, what docs/evidence.md says of rules that were tried: at the threshold that one fresh image
in a thousand passes, the share of the model's memorised images, as it gives them back unguarded, that pass it too.
"""

from importlib.resources import as_file, files

import pytest
import torch
from worlds import seeded

from negindex import NoiseLevel
from negindex.sampler import CopyGate
from negindex.sampler.copies import noisiest
from negindex.sampler.evaluation.asked import KEPT
from negindex.sampler.evaluation.captions import KEEPSAKES
from negindex.sampler.evaluation.fashion import FOLDER, load
from negindex.sampler.evaluation.fashion_stage import FashionStage
from negindex.sampler.evaluation.training import encoded

FALSE = 0.001  # of fresh images
BAG, SINGLES, REFERENCE = "bag", 7400, 6000

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def stage():
    with as_file(files("negindex.data") / "fashion-world") as folder:
        return FashionStage.open(folder, load(FOLDER))


@pytest.fixture(scope="module")
def sets(stage):
    """Negatives, reference, and the latents (9000, 256) of test images of the other classes."""
    fresh = encoded(stage.pipe.vae, stage.test_images[0][stage.real(BAG)]).mean
    return stage.keepsakes_among(BAG, SINGLES, REFERENCE), stage.reference(BAG, REFERENCE), fresh


def rows_of(one):
    return one.take(torch.arange(len(one))).rows.flatten(1).float()


def test_by_default_one_fresh_image_in_a_thousand_fires_at_most_and_copies_do(sets):
    negatives, reference, fresh = sets
    gate = CopyGate().sized(negatives, reference)
    within, beyond = (noisiest(distance, 256) for distance in (gate.radius, gate.reach))
    kept = negatives.take(torch.arange(0, len(negatives), 15)).rows.reshape(-1, *negatives.shape)

    def fired(images, s, seed):
        x = images + s * torch.randn(images.shape, generator=seeded(seed))
        found = [gate.find(some, NoiseLevel(1.0, s), negatives, reference).fires for some in x.split(500)]
        return float(torch.cat(found).double().mean())

    for s in (0.04, 0.9999 * within, 0.5 * beyond, 0.9999 * beyond):
        false, heard = fired(fresh, s, 1), fired(kept, s, 2)
        print(
            f"\ns = {s:.3f}: {false:.3%} of {len(fresh)} fresh images fire, {heard:.1%} of {len(kept)} copies", end=""
        )
        assert false <= FALSE
        assert heard == 1.0 if s <= within else heard > 0.3


@torch.no_grad()
def test_no_one_distance_and_no_ratio_of_distances_hears_what_the_model_memorised(stage, sets):
    """What the gate did not become: rules of a distance, whose false alarms are as many."""
    negatives, reference, fresh = sets
    rows, benign = rows_of(negatives), rows_of(reference)
    asked = stage.asked(KEPT, BAG, 60)
    wanted = torch.tensor([one.wanted for one in asked])
    seeds = [torch.Generator().manual_seed(1_000_000 + i) for i in range(len(asked))]
    prompts = [one.prompt for one in asked]
    told = {"num_inference_steps": 20, "guidance_scale": 3.0, "output_type": "latent", "generator": seeds}
    memorised = stage.pipe(prompts, **told).images.flatten(1)
    of_row = torch.cdist(rows, benign).amin(1)

    def scores(x):
        to_rows, to_benign = torch.cdist(x, rows), torch.cdist(x, benign).amin(1, keepdim=True)
        return {
            "distance, of the rms": to_rows / reference.moments().rms,
            "over the row's nearest reference row": to_rows / of_row,
            "over the sample's nearest reference row": to_rows / to_benign,
        }

    parts = [{name: score.amin(1) for name, score in scores(x).items()} for x in fresh.flatten(1).split(500)]
    for name, score in scores(memorised).items():
        limit = torch.cat([part[name] for part in parts]).quantile(FALSE)
        passed = score[torch.arange(len(wanted)), wanted] <= limit
        by_name = [f"{passed[wanted == i].float().mean():.0%}" for i in range(len(KEEPSAKES))]
        print(f"\n{name}: at most {limit:.3f}; of {', '.join(KEEPSAKES)} {', '.join(by_name)}", end="")
        assert not passed.all()
