"""A table that was said as JSON, as Markdown: whole, or part by part inside a page of words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from negindex.errors import Damaged, NotThere
from negindex.sampler.evaluation.asked import KEPT, NOTHING, REQUESTS, UNSAFE
from negindex.sampler.evaluation.intervals import Figure

UNGUARDED = "nothing"

_HEADS = {
    "unwanted": "read as {avoided}",
    "clean": "clean and safe",
    "hit": "as asked",
    "score": "mean score",
    "clip": "CLIP score",
    "fd": "FD",
    "fd_more": "FD more than unguarded",
    "precision": "precision",
    "recall": "recall",
    "distance": "nearest real image",
    "confidence": "confidence",
    "vendi": "diversity",
    "seconds": "s an image",
    "cpu": "CPU s an image",
}
_OF_WORLDS = (
    "unwanted",
    "clean",
    "hit",
    "fd",
    "fd_more",
    "precision",
    "recall",
    "distance",
    "confidence",
    "vendi",
    "cpu",
)
_SHARES = ("unwanted", "clean", "hit", "precision", "recall")
_OF_REQUEST = {  # columns that say nothing
    **dict.fromkeys((*UNSAFE, NOTHING), ("hit", "fd_more")),
    KEPT: ("unwanted", "fd_more"),
}
_HEAD, _BESIDE = "head", ("confidence", "recall", "vendi", "cpu")  # what a page's parts leave to the JSON
_BLOCK = re.compile(r"(<!-- (?P<file>\S+\.json) (?P<part>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(said: Mapping[str, Any], classes: bool = True) -> Iterator[str]:
    """The table that ``as_json`` said, request by request; ``classes``: with every class's share under each."""
    yield f"# {said['title']}"
    yield ""
    yield from head(said)
    real = [cell for cell in said["cells"] if cell["request"] == "real"]
    for request, words in said.get("asked", REQUESTS).items():
        of = [cell for cell in said["cells"] if cell["request"] == request]
        if of:
            yield from ("", f"## Asked for {words}", "")
            shown = [*(real if request != KEPT else []), *of]
            yield from part(said["avoided"], request, shown, columns=said.get("columns", _OF_WORLDS))
            if classes and of[0]["classes"]:
                yield from ("", "Share of the samples read as each class (mean confidence in those):", "")
                yield from _classes(of)


def head(said: Mapping[str, Any]) -> Iterator[str]:
    """What the table was made with, and whether its precondition holds."""
    yield said.get("made") or (
        f"{said['count']} images a cell, the same seeds in each; {said['steps']} steps, guidance {said['guidance']:g}; "
        f"{said['negatives']}, {said['reference']} reference rows. Intervals: 95 %, for each figure alone. "
        f"FD, precision, recall and diversity are of {said['features']}, beside real test images of the other "
        "classes. Clean and safe: read as another class, and as sure and as near to a real image as nine of ten real "
        "test images are. Nearest real image: mean L2 distance in pixels to what the model was trained on."
    )
    missed = said["precondition missed"]
    yield ""
    held = said.get("precondition") or _obeyed(said["cells"])
    yield f"**Precondition missed.** {'; '.join(missed)}." if missed else held


def refreshed(text: str, folder: Path) -> str:
    """A page with every part of a table as its JSON has it.

    A part stands between ``<!-- FILE.json REQUEST -->`` and ``<!-- end -->``; ``head`` in the place of a request is
    what the table was made with. folder: that files are named from. Raises NotThere and Damaged.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}{_block(folder / found['file'], found['part'])}\n{found[4]}", text)


def read(path: Path) -> dict[str, Any]:
    """A table that ``eval report`` wrote as JSON; raises NotThere and Damaged."""
    if not path.is_file():
        raise NotThere(f"{path} is not there; `negindex eval report` writes such files")
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        said["cells"], said["avoided"]
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} is no table ({error!r}); write it again with `negindex eval report`") from error
    return said


# -- inside ----------------------------------------------------------------------------------------


def _block(path: Path, name: str) -> str:
    said = read(path)
    if name == _HEAD:
        return "\n".join(head(said))
    cells = [cell for cell in said["cells"] if cell["request"] == name]
    if not cells:
        raise NotThere(f"{path} has no part {name!r}; it has {sorted({cell['request'] for cell in said['cells']})}")
    return "\n".join(part(said["avoided"], name, cells, _BESIDE, said.get("columns", _OF_WORLDS)))


def _obeyed(cells: Sequence[Mapping[str, Any]]) -> str:
    told = [cell for cell in cells if cell["method"] == UNGUARDED and cell["request"] in UNSAFE]
    if not told:
        return f"Precondition not looked at: the table lacks the method {UNGUARDED!r}, or requests for the unwanted."
    obeyed = ", ".join(f"{REQUESTS[cell['request']]}: {cell['measures']['hit'][0]:.1%}" for cell in told)
    return f"Precondition: the unguarded model obeys ({obeyed})."


def part(
    avoided: str,
    request: str,
    cells: Sequence[Mapping[str, Any]],
    leave_out: Sequence[str] = (),
    columns: Sequence[str] = _OF_WORLDS,
) -> Iterator[str]:
    """The rows of one request, less the columns that say nothing of it, that are empty, or that are left out."""
    silent = (*_OF_REQUEST.get(request, ()), *leave_out)
    spoken = [name for name in columns if name not in silent and any(name in cell["measures"] for cell in cells)]
    heads = ["copies" if name == "hit" and request == KEPT else _HEADS[name].format(avoided=avoided) for name in spoken]
    yield f"| method | {' | '.join(heads)} |"
    yield "|---|" + "---|" * len(spoken)
    for cell in cells:
        shown = [_shown(name, cell["measures"].get(name)) for name in spoken]
        yield f"| {cell['method']} | {' | '.join(shown)} |"


def _shown(name: str, said: Sequence[float] | None) -> str:
    if said is None:
        return ""
    figure = Figure(*said)
    if name in ("cpu", "seconds"):
        return f"{figure.value:.3f}"
    if name in _SHARES:
        return f"{figure.value:.1%} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"
    return str(figure)


def _classes(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"| method | {' | '.join(cells[0]['classes'])} |"
    yield "|---|" + "---|" * len(cells[0]["classes"])
    for cell in cells:
        shown = [f"{told['share']:.1%} ({told['confidence']:.2f})" for told in cell["classes"].values()]
        yield f"| {cell['method']} | {' | '.join(shown)} |"
