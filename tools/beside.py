"""What commands that take in a corpus may do beside rows: embeddings, thumbnails, near-duplicates, a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from negindex import Collection
    from negindex.sampler.clip import Clip
    from negindex.sampler.contact import Contact
    from negindex.sampler.fetch import Fetcher
    from negindex.sampler.ingest import Entry
    from negindex.sampler.sources import Source

CLIP = (
    click.option("--clip", metavar="MODEL",
                 help="The open-clip model whose embeddings stand beside the rows, such as ViT-B-32."),
    click.option("--clip-weights", metavar="FILE|local-dir:DIR",
                 help="Its weights: a .safetensors file, or a folder with open_clip_config.json. Nothing is fetched."),
)  # fmt: skip
_OPTIONS = (
    *CLIP,
    click.option("--thumbnails", is_flag=True, help="Keep a small picture of each image, for people's look-ups."),
    click.option("--refuse-near", metavar="BITS", type=click.IntRange(0, 255),
                 help="Leave out images that differ in at most so many bits of PDQ (31 is usual) from a row, or from "
                 "an earlier input, mirrored and turned too."),
    click.option("--sheet", metavar="FILE.png", type=click.Path(path_type=Path, dir_okay=False),
                 help="Draw what went in (up to 200) and what was left out as near (up to 100), beside its neighbour."),
    click.option("--allow-fetch", metavar="HOST", multiple=True,
                 help="Read the URLs of this host that lists name: from public addresses alone, within 30 s each."),
)  # fmt: skip


@dataclass
class More:
    """The options as they were given."""

    clip: str | None = None
    clip_weights: str | None = None
    thumbnails: bool = False
    refuse_near: int | None = None
    sheet: Path | None = None
    allow_fetch: tuple[str, ...] = ()
    _contact: Contact | None = field(default=None, init=False)
    _clip: Clip | None = field(default=None, init=False)

    def load(self) -> None:
        """Load what is asked for, before anything is made or changed. Raises NotThere, InvalidInput, Damaged."""
        from negindex.errors import NotThere

        if self.sheet is not None and not self.sheet.parent.is_dir():
            raise NotThere(f"{self.sheet.parent} is no folder; name a sheet in one that is there")
        self._clip = load_clip(self.clip, self.clip_weights)

    def fetcher(self, max_bytes: int) -> Fetcher | None:
        """What reads URLs; None where no host was named. Raises InvalidInput for what is no host's name."""
        from negindex.sampler.fetch import Fetcher

        return Fetcher(self.allow_fetch, max_bytes=max_bytes) if self.allow_fetch else None

    def check(self, collection: Collection, sources: Iterable[Source]) -> None:
        """Raise SpaceMismatch where the set would hold embeddings of two models."""
        from negindex.sampler.beside import check_embedded
        from negindex.sampler.sources import Bundled, Held

        models = [source.about.embedded_by for source in sources if isinstance(source, Held | Bundled)]
        check_embedded(collection, [*models, self._clip.fingerprint if self._clip else None])

    def options(self, collection: Collection, tell: Callable[[Entry], None]) -> dict[str, Any]:
        """What ``ingest`` is to do besides."""
        from negindex.sampler.beside import Maker
        from negindex.sampler.contact import Contact
        from negindex.sampler.sieve import Sieve

        self._contact = None if self.sheet is None else Contact()
        contact, clip = self._contact, self._clip
        steps: list[Callable[[Iterator[Any]], Iterator[Any]]] = []
        if self.refuse_near is not None:
            told = {} if contact is None else {"tell": contact.refused}
            steps.append(Sieve(collection, self.refuse_near, **told))
        if contact is not None:
            steps.append(contact)
        make = Maker(
            clip.embed if clip else None, clip.fingerprint if clip else "", self.thumbnails, contact is not None
        )
        return {"beside": make, "through": _chain(steps), "tell": _both(tell, contact)}

    def finish(self, collection: Collection) -> None:
        """Write the sheet."""
        if self._contact is not None and self.sheet is not None:
            self._contact.write(self.sheet, collection)


def takes_more(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that takes in a corpus these options, as ``more``."""

    @wraps(command)
    def run(**given: Any) -> Any:
        names = [name for name in More.__dataclass_fields__ if not name.startswith("_")]
        return command(more=More(**{name: given.pop(name) for name in names}), **given)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


def takes_clip(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that name an open-clip model."""
    for option in reversed(CLIP):
        command = option(command)
    return command


def load_clip(model: str | None, weights: str | None) -> Clip | None:
    """The model that --clip and --clip-weights name; None without."""
    if (model is None) != (weights is None):
        raise click.UsageError("--clip and --clip-weights go together: the model's name, and where its weights lie")
    if model is None or weights is None:
        return None
    from negindex.errors import NotThere

    try:
        from negindex.sampler.clip import Clip

        return Clip(model, weights)
    except ImportError as error:
        raise NotThere(f"{error.name} is not installed; `pip install negindex[clip]` brings it") from error


def _chain(steps: list[Callable[[Iterator[Any]], Iterator[Any]]]) -> Callable[[Iterator[Any]], Iterator[Any]]:
    def run(looks: Iterator[Any]) -> Iterator[Any]:
        for step in steps:
            looks = step(looks)
        return looks

    return run


def _both(tell: Callable[[Entry], None], contact: Contact | None) -> Callable[[Entry], None]:
    if contact is None:
        return tell

    def run(entry: Entry) -> None:
        tell(entry)
        contact.told(entry)

    return run
