"""Every code block of the README runs, and prints what it shows; docstrings' examples hold."""

import doctest
import pkgutil
import re
import shlex
import subprocess
import sys
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
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_every_block_of_the_readme_is_of_a_kind_that_is_run_here():
    assert {kind for kind, _ in BLOCKS} == {"console", "python"}


@pytest.mark.timeout(1800)
def test_the_readme_runs_from_top_to_bottom_as_printed(demo_run, monkeypatch):
    """make demo has run in the reader's folder; then each block in turn, in one Python session."""
    assert demo_run.returncode == 0, demo_run.stdout
    monkeypatch.chdir(demo_run.folder)
    session, seen = {}, []
    for kind, block in BLOCKS:
        if kind == "console":
            seen += run_console(block)
        else:
            run_python(block, session)
    assert seen.count("make") == 2
    assert "negindex" in seen


def run_console(block):
    """Run each `$` line and compare what it prints; make's targets are named, not run inside themselves."""
    for command, shown in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)*)", block, re.MULTILINE):
        words = shlex.split(command, comments=True)
        yield words[0]
        if words[0] == "make":
            makefile = ROOT / "Makefile"
            assert not makefile.exists() or re.search(rf"^{words[1]}:", makefile.read_text(), re.MULTILINE)
            continue
        assert words[0] == "negindex"
        done = subprocess.run(
            [sys.executable, "-m", "negindex.tools", *words[1:]], capture_output=True, text=True, check=False
        )
        assert done.stdout == shown, f"{command}\n{done.stdout}{done.stderr}"


def run_python(block, session):
    test = doctest.DocTestParser().get_doctest(block, session, "README.md", "README.md", 0)
    said = []
    failed = doctest.DocTestRunner(verbose=False).run(test, out=said.append, clear_globs=False).failed
    session.update(test.globs)
    assert not failed, "".join(said)


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
