"""The page of evidence says what its files say, and its files are of the weights that ship."""

import json
import re
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from negindex.sampler.evaluation.fashion_stage import FashionStage
from negindex.sampler.evaluation.pages import refreshed
from negindex.sampler.evaluation.table import Table
from negindex.tools.digits_stage import DigitsStage

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "evidence.md"
TABLES = sorted((DOCS / "evidence").glob("*.json"))


def test_the_tables_of_the_page_are_those_of_its_files():
    text = PAGE.read_text(encoding="utf-8")
    assert refreshed(text, DOCS) == text, "negindex eval page docs/evidence.md"


def test_every_file_stands_in_the_page_with_its_command():
    text = PAGE.read_text(encoding="utf-8")
    for path in TABLES:
        assert f"<!-- evidence/{path.name} " in text
        assert f"negindex eval run docs/evaluation/{path.stem}.toml" in text
    assert set(re.findall(r"evidence/([\w-]+\.(?:png|json))", text)) == {
        path.name for path in (DOCS / "evidence").iterdir()
    }


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_file_holds_every_method_of_its_table_at_its_numbers(path):
    said, table = json.loads(path.read_text(encoding="utf-8")), Table.read(DOCS / "evaluation" / f"{path.stem}.toml")
    assert (said["count"], said["steps"], said["seed"]) == (table.count, table.drawn.steps, table.drawn.seed)
    held = {(cell["request"], cell["method"]): cell["stated"] for cell in said["cells"] if cell["request"] != "real"}
    assert held == {(request, m.name): m.stated() for request in table.requests for m in table.methods}


def test_the_files_are_of_the_weights_that_ship():
    with as_file(files("negindex.data")) as folder:
        stages = {
            "fashion": FashionStage.open(folder / "fashion-world", None),
            "digits": DigitsStage(folder / "digits-unet"),
        }
    for path in TABLES:
        said = json.loads(path.read_text(encoding="utf-8"))
        assert said["weights"] == stages[said["world"]].weights, path.name
