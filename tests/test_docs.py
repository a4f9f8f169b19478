"""Docstrings' examples hold, links lead somewhere, tables name all that there is."""

import doctest
import pkgutil
import re
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest

import negindex
import negindex.sampler
import negindex.sampler.evaluation
import negindex.testing
import negindex.tools
from negindex.sampler.schedules import FAMILIES, REFUSED

ROOT = Path(__file__).parents[1]


def modules():
    for package in (negindex, negindex.sampler, negindex.sampler.evaluation, negindex.testing, negindex.tools):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                yield found.name


@pytest.mark.parametrize("name", sorted(set(modules())))
def test_examples_in_docstrings_hold(name):
    assert doctest.testmod(import_module(name)).failed == 0


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="links are checked in a checkout")
def test_links_between_the_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_scheduler_that_can_be_guarded_or_is_refused_stands_in_the_table():
    page = (ROOT / "docs" / "schedulers.md").read_text(encoding="utf-8")
    assert [name for name in [*FAMILIES, *REFUSED] if f"`{name}" not in page] == []


def test_public_names_have_docstrings():
    for package in (negindex, negindex.sampler):
        for name in package.__all__:
            thing = getattr(package, name)
            if isinstance(thing, type | FunctionType):
                assert thing.__doc__, f"{package.__name__}.{name}"
