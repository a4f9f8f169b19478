"""``negindex eval``: does it keep images away, at what price, beside what others do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negindex.tools.common import errors_to_exit_codes, machine, quiet_diffusers

if TYPE_CHECKING:
    from negindex.sampler.evaluation.filling import Filling
    from negindex.sampler.evaluation.models.filling import ModelFilling

_FASHION = "/usr/share/datasets/fashion-mnist"


@click.group("eval")
def eval_() -> None:
    """Compare methods on a small model that ships, or on a real one, with intervals."""


def _options(command: Any) -> Any:
    """What both commands take."""
    for option in (
        click.option("--count", type=click.IntRange(20), help="Images a cell (default: the file's)."),
        click.option(
            "--world",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder that train-world or train-digits wrote (default: the one that ships).",
        ),
        click.option(
            "--fashion",
            type=click.Path(path_type=Path),
            default=_FASHION,
            show_default=True,
            help="Folder with the files of Debian's dataset-fashion-mnist.",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            required=True,
            help="Folder of this table's cells and reports.",
        ),
        click.argument("config", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


@eval_.command(
    epilog="""\b
Example:
  negindex eval run docs/evaluation/bags.toml --out demo/bags --count 100
"""
)
@_options
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads that torch may use.")
@errors_to_exit_codes
def run(config: Path, out: Path, count: int | None, world: Path | None, fashion: Path, threads: int) -> None:
    """Fill the table that CONFIG describes: sample and measure every cell that OUT lacks.

    Interrupted, the same command goes on. A cell is made anew where a number that it depends on has changed. The file
    says what is unwanted, which methods, which requests, and how many images, steps and rows. A file that names a
    model's folder is about that one: docs/evaluation.md, "Your own model".
    """
    import torch

    torch.set_num_threads(threads)
    _bench(config, out, count, world, fashion).run(lambda done: click.echo(done, err=True))
    click.echo(f"{machine()}: {out}")


@eval_.command(
    epilog="""\b
Example:
  negindex eval report docs/evaluation/bags.toml --out demo/bags --count 100
"""
)
@_options
@errors_to_exit_codes
def report(config: Path, out: Path, count: int | None, world: Path | None, fashion: Path) -> None:
    """Write what is there of a table: OUT/table.md, table.json, table.png, and a grid of pictures a request.

    Exit code 3 while cells are missing, and where the unguarded model obeys too few prompts to say anything.
    """
    import sys

    from negindex.sampler.evaluation.models import report as of_models
    from negindex.sampler.evaluation.models.filling import ModelFilling
    from negindex.sampler.evaluation.report import precondition, write
    from negindex.tools.common import PARTLY

    filling = _bench(config, out, count, world, fashion)
    cells = list(filling.cells())
    if isinstance(filling, ModelFilling):
        written, faults = of_models.write(filling, out), of_models.precondition(filling, cells)
    else:
        written, faults = write(filling, out), precondition(cells)
    for path in written:
        click.echo(str(path))
    missing = len(filling.table.requests) * len(filling.table.methods) - sum(cell.request != "real" for cell in cells)
    if missing:
        faults.append(f"{missing} cells are missing; run `negindex eval run`")
    for fault in faults:
        click.echo(f"negindex: {fault}", err=True)
    if faults:
        sys.exit(PARTLY)


@eval_.command(
    epilog="""\b
Example:
  negindex eval page docs/evidence.md
"""
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@errors_to_exit_codes
def page(file: Path) -> None:
    """Put the tables of a Markdown page in again, from the JSON files that it names.

    A table stands between `<!-- FILE.json REQUEST -->` and `<!-- end -->`, its file seen from the page's folder.
    """
    from negindex.errors import NotThere
    from negindex.sampler.evaluation.pages import refreshed

    if not file.is_file():
        raise NotThere(f"{file} is not there; name a page of Markdown")
    before = file.read_text(encoding="utf-8")
    after = refreshed(before, file.parent)
    if after != before:
        file.write_text(after, encoding="utf-8")
    click.echo(f"{file}: {'its tables are as their files say' if after == before else 'tables put in again'}")


def _bench(config: Path, out: Path, count: int | None, world: Path | None, fashion: Path) -> Filling | ModelFilling:
    """The table, on the model that it names, or on the one that comes with negindex."""
    from importlib.resources import as_file, files

    from negindex.sampler.evaluation.fashion import load
    from negindex.sampler.evaluation.fashion_stage import FashionStage
    from negindex.sampler.evaluation.filling import Filling
    from negindex.sampler.evaluation.models.filling import ModelFilling
    from negindex.sampler.evaluation.models.table import ModelTable
    from negindex.sampler.evaluation.table import FASHION, Table, contents
    from negindex.tools.digits_stage import DigitsStage

    quiet_diffusers()
    if "model" in contents(config):
        return ModelFilling(ModelTable.read(config).with_count(count), out)
    table = Table.read(config).with_count(count)
    shipped = "fashion-world" if table.world == FASHION else "digits-unet"
    with as_file(files("negindex.data") / shipped) as folder:
        chosen = world or folder
        stage = FashionStage.open(chosen, load(fashion)) if table.world == FASHION else DigitsStage(chosen)
    return Filling(table, stage, out)
