"""``negindex demo``: the main job on real images, and a check that it was done."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negindex.tools.common import errors_to_exit_codes, machine, quiet_diffusers

if TYPE_CHECKING:
    from negindex.receipts import Receipt
    from negindex.tools.demo_measures import Verdict

TAKEN_DOWN = 3
TAKEDOWN_BATCH = 250


@click.command(
    epilog="""\b
Example:
  negindex demo --out demo
"""
)
@click.option(
    "--out",
    default="demo",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write to; what an earlier run left there is replaced.",
)
@click.option(
    "--images",
    default=1000,
    show_default=True,
    type=click.IntRange(min=100),
    help="Images in the first cell of each table; a fifth as many of each class. Fewer end sooner, and every interval "
    "is as much wider.",
)
@errors_to_exit_codes
def demo(out: Path, images: int) -> None:
    """Keep a small digit model away from the 8s, on two samplers, and check the figures.

    Writes real digits as PNGs, builds a collection of 8s and a benign reference with `negindex build`,
    samples unguarded and guarded from the same seeds, prints a table, takes one more class down while
    the pipeline lives, and withdraws it again. Exit code 1 when a figure falls short.
    """
    began = time.perf_counter()
    from negindex import Collection
    from negindex.sampler.pipelines import load_pipeline
    from negindex.tools import digits
    from negindex.tools.demo_cells import Setting, compare
    from negindex.tools.demo_measures import Judge
    from negindex.tools.demo_sheet import contact_sheet

    click.echo("1  real digits into collections")
    training, held_out = digits.load()
    eights, others = _build_sets(out, training)

    click.echo("\n2  one diffusion model, unguarded and guarded from the same seeds")
    judge = Judge(training, held_out)
    quiet_diffusers()
    with as_file(files("negindex.data") / "digits-unet") as folder:
        pipe = load_pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    setting = Setting(pipe, Collection.open(eights), Collection.open(others))
    click.echo(f"   {setting}")
    click.echo(f"   {machine()}")
    click.echo(
        f"   classifier, never asked by the guard: {judge.accuracy:.1%} right on held-out digits; "
        f"these lie {judge.held_out_distance:.2f} from the nearest training image"
    )
    compared = compare(setting, judge, images, lambda done: click.echo(f"   … {done}", err=True))
    for scheduler in compared:
        click.echo("\n" + "\n".join(f"   {line}" for line in scheduler.table()))

    click.echo("\n3  before beside after")
    note = "The same seeds, before and after. Framed: read as an 8 by the classifier. 8 by 8 pixels, enlarged."
    contact_sheet([row for scheduler in compared for row in scheduler.panels()], out / "before-after.png", note)
    click.echo(f"   {out / 'before-after.png'}")

    click.echo(f"\n4  a takedown while the pipeline lives: the {TAKEN_DOWN}s, then withdrawn again")
    verdicts = [verdict for scheduler in compared for verdict in scheduler.verdicts()]
    verdicts += _takedown(setting, judge, eights, out)
    _conclude(verdicts, out, time.perf_counter() - began)


def _build_sets(out: Path, training: Any) -> tuple[Path, Path]:
    """PNG folders, the collection of 8s, and the reference: every second training digit of the other classes."""
    from negindex.tools import digits
    from negindex.tools.demo_measures import AVOIDED

    eights, others, images, benign = (out / name for name in ("eights.set", "others.set", "digits", "reference"))
    for path in (eights, others, images, benign):
        shutil.rmtree(path, ignore_errors=True)
    digits.write_images(training, images)
    rest = training.only(training.classes != AVOIDED)
    digits.write_images(rest.every_second(), benign)
    click.echo(
        f"   {len(training.classes)} training digits as PNGs in {images}/, half of the non-{AVOIDED}s in {benign}/"
    )
    _command("build", eights, images / str(AVOIDED), "--space", "pixels", "--size", 8)
    _command("build", others, benign, "--space", "pixels", "--size", 8)
    return eights, others


def _command(*words: object) -> None:
    """Run a negindex command as the reader would, and show it."""
    from negindex.tools.cli import main

    sys.stdout.write("   $ negindex " + " ".join(f'"{w}"' if " " in str(w) else str(w) for w in words) + "\n   ")
    sys.stdout.flush()
    main([str(word) for word in words], standalone_mode=False)


def _takedown(setting: Any, judge: Any, eights: Path, out: Path) -> Iterator[Verdict]:
    """One more class in force between two batches, and out again: the same pipeline, the same guard."""
    import torch

    from negindex.sampler.encode import to_images
    from negindex.tools.demo_cells import sample
    from negindex.tools.demo_measures import Verdict

    batches, shares = [], []
    with setting.guarded() as guarding:
        for change in (
            None,
            ("add", eights, out / "digits" / str(TAKEN_DOWN), "--label", "takedown-1"),
            ("withdraw", eights, "--label", "takedown-1", "--reason", "counter-notice"),
        ):
            if change:
                _command(*change)
            batches.append(sample(setting.pipe, [None] * TAKEDOWN_BATCH, steps=12, seed=99))
            shares.append(float((judge.read(batches[-1])[0] == TAKEN_DOWN).mean()))
            click.echo(f"   next batch, same seeds: {shares[-1]:.1%} read as {TAKEN_DOWN}")
            if change and change[0] == "add":
                receipt = guarding.receipts[0].bind(to_images(batches[-1][:1])[0])
    receipt.save(out / "receipt.json")
    click.echo(f"   receipt of the first image made under the takedown ({out / 'receipt.json'}):")
    click.echo("\n".join(f"     {line}" for line in _told(receipt)))
    yield Verdict(f"takedown: share of {TAKEN_DOWN}s in force, at most a third", shares[1], 0, shares[0] / 3)
    yield Verdict("withdrawn: images as before, to the bit", float(torch.equal(batches[0], batches[2])), 1, 1)


def _told(receipt: Receipt) -> Iterator[str]:
    """A receipt's head, and three of its steps."""
    for name, sets in (("negatives", receipt.sets), ("reference", receipt.reference)):
        for stated in sets:
            yield f"{name}: set {stated.set_id[:8]}, version {stated.version}, {stated.rows} rows"
    yield f"rule {receipt.rule}; gate {receipt.gate}; kernel {receipt.kernel}; scheduler {receipt.scheduler}"
    for step in (receipt.steps[0], receipt.steps[len(receipt.steps) // 2], receipt.steps[-1]):
        heaviest = step.heaviest[0]
        yield (
            f"s {step.sigma / step.alpha:8.3f}  log odds {step.log_odds:+7.2f}  correction {step.correction:6.3f}  "
            f"heaviest {heaviest.source_key}"
        )
    yield f"pixels {receipt.image_sha256}"
    yield f"digest {receipt.digest}"


def _conclude(verdicts: list[Verdict], out: Path, seconds: float) -> None:
    """Every figure that must hold; exit code 1 when one does not."""
    missed = [verdict for verdict in verdicts if not verdict.holds]
    listed = [{**verdict._asdict(), "holds": verdict.holds} for verdict in verdicts]
    (out / "figures.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(
        f"\n{len(verdicts) - len(missed)} of {len(verdicts)} figures hold (each with its bounds: "
        f"{out / 'figures.json'}); {seconds:.0f} s"
    )
    for verdict in missed:
        click.echo(
            f"   MISSED {verdict.what}: {verdict.figure:.4f}, must lie in [{verdict.low:.4f}, {verdict.high:.4f}]"
        )
    if missed:
        sys.exit(1)
