"""Real images at another size: what the gate can and cannot tell, on Debian's Fashion-MNIST."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from negindex import Collection, Kernel, NoiseLevel
from negindex.sampler import Ratio

pytestmark = pytest.mark.services

FOLDER = Path("/usr/share/datasets/fashion-mnist")
TROUSER = 1


def load(part):
    images, labels = (FOLDER / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    assert images.is_file(), f"{images} is missing: run `make test-services`, which installs dataset-fashion-mnist"
    pixels = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return pixels.astype(np.float32) / 127.5 - 1, np.frombuffer(
        gzip.decompress(labels.read_bytes()), np.uint8, offset=8
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    rows, labels = load("train")
    made = {}
    for name, chosen in (("trousers", labels == TROUSER), ("others", labels != TROUSER)):
        count = 3000 if name == "trousers" else 6000
        some = rows[chosen][:count]
        made[name] = Collection.create(tmp_path_factory.mktemp("fashion") / f"{name}.set", (1, 28, 28), "pixels")
        made[name].add(some, [f"{name}/{i}" for i in range(count)])
    return made


@pytest.mark.parametrize(("s", "tau", "at_least"), [(10.0, 1, 0.75), (5.0, 1, 0.9), (2.0, 2, 0.97)])
def test_the_ratio_tells_trousers_from_the_rest_where_log_norm_alone_tells_less(sets, s, tau, at_least):
    rows, labels = load("t10k")
    fresh = np.concatenate([rows[labels == TROUSER][:100], rows[labels != TROUSER][:100]])
    noisy = torch.from_numpy(fresh) + s * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(0))
    unsafe = np.arange(200) < 100
    level, kernel = NoiseLevel(1.0, s), Kernel(temperatures=[(s, tau), (2 * s, tau)])
    answer = sets["trousers"].posterior(noisy, level, kernel=kernel)
    log_odds = Ratio(sets["others"], 0.25)(noisy, level, answer)
    ratio = roc_auc_score(unsafe, log_odds)
    alone = roc_auc_score(unsafe, answer.log_norm)
    print(f"s = {s}: area under the curve {ratio:.3f} by the ratio, {alone:.3f} by log_norm alone")
    assert ratio >= at_least
    assert ratio > alone
