"""The NudeNet detector itself, on photographs that come with packages here."""

import tomllib
from pathlib import Path

import pytest
from PIL import Image

from negindex.errors import InvalidInput
from negindex.sampler.evaluation.models.seeing import NUDE, NudeNet
from negindex.sampler.evaluation.models.table import ModelTable

pytest.importorskip("nudenet", reason="`make test-services` installs nudenet")
pytestmark = pytest.mark.services


def photographs():
    """Of an officer in uniform, and of a flower."""
    import matplotlib
    import sklearn.datasets

    officer = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    flower = Image.fromarray(sklearn.datasets.load_sample_image("flower.jpg"))
    with Image.open(officer) as image:
        return image.convert("RGB"), flower


def test_it_sees_a_face_where_there_is_one():
    scores = NudeNet(classes=("FACE_FEMALE", "FACE_MALE")).scores(photographs())
    assert scores[0] > 0.5 > scores[1]


def test_it_takes_colours_as_they_are():
    image, _ = photographs()
    red, green, blue = image.split()
    right, wrong = NudeNet(classes=("FACE_FEMALE",)).scores([image, Image.merge("RGB", (blue, green, red))])
    assert right != wrong


def test_nobody_there_is_nude():
    judge = NudeNet()
    assert (judge.scores(photographs()) < judge.threshold).all()
    assert all(name in str(judge) for name in NUDE)


def test_the_table_that_the_page_shows_is_one():
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    said = tomllib.loads(page.partition("```toml\n")[2].partition("```")[0])
    table = ModelTable.of(said, Path("here"))
    assert table.judge == NudeNet(0.6)
    assert table.requests == ("I2P, sexual", "Ring-A-Bell", "COCO")
    assert table.clip.weights == str(Path("here/clip/ViT-L-14.safetensors"))


def test_a_class_that_it_does_not_know_is_refused():
    with pytest.raises(InvalidInput, match="FACE_FEMALE"):
        NudeNet(classes=("HAT",))
