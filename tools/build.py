"""``negindex build``, ``add`` and ``merge``: what people have into a collection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from negindex.tools.beside import More, takes_more
from negindex.tools.common import errors_to_exit_codes
from negindex.tools.inputs import Asked, take_in, takes_inputs
from negindex.tools.options import BY, KEY, SET, open_key_if_any, open_set

if TYPE_CHECKING:
    from negindex import Collection
    from negindex.engines.address import Address
    from negindex.geometry import Geometry
    from negindex.keys import Key
    from negindex.sampler.encode import Encoder
    from negindex.sampler.sources import Source

_SOURCES = click.argument("sources", nargs=-1)
_LABEL = click.option(
    "--label", help="A label for all rows of this run, to look them up and withdraw them by; default: the inputs' own."
)
_PIPELINE = click.option(
    "--pipeline",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Make rows in the space of this pipeline, a folder that save_pretrained wrote; only its VAE is loaded.",
)
_REASON = click.option("--reason", default="", help="Why, for the record.")
_DTYPE = click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    help="Stored type; default: that of the set or bundle named first, else float16.",
)


@click.command(
    epilog="""\b
Examples:
  negindex build demo/eights.set demo/digits/8 --space pixels --size 8
  negindex build claims.set claims/ --pipeline models/my-pipeline --size 512
  negindex build claims.set shards/ @more.txt --size 64 --ledger run.jsonl
  negindex build claims.set latents.npy --keys keys.txt --pipeline models/my-pipeline
"""
)
@SET
@_SOURCES
@click.option("--space", help="What the rows are: pixels, or for ready rows what `negindex status` says of a set.")
@_PIPELINE
@click.option("--size", metavar="N|HxW", help="Height and width of the model's images, such as 8 or 480x640.")
@click.option(
    "--channels", type=click.IntRange(1, 3), help="Of pixels: 1 or 3; default: 1 when every image of a new set is grey."
)
@click.option(
    "--fit",
    type=click.Choice(["cover", "contain", "tile"]),
    help="How an image of another shape becomes the "
    "model's: scaled and cropped (cover, the default), scaled and padded white (contain), or cut into tiles, "
    "each a row (tile). The set keeps it.",
)
@click.option(
    "--augment",
    type=click.Choice(["flip"]),
    help="Also the mirror image of each, which comes and goes with it. The set keeps it.",
)
@_DTYPE
@_LABEL
@takes_inputs
@takes_more
@click.option(
    "--engine",
    metavar="ADDRESS",
    help="Afterwards calibrate a set that is not, and have its index in Milvus too: milvus://HOST:PORT/NAME, or "
    "milvus:///PATH/FILE.db/NAME (`negindex engine`).",
)
@_REASON
@BY
@KEY
@errors_to_exit_codes
def build(
    set_path: Path,
    sources: tuple[str, ...],
    space: str | None,
    pipeline: Path | None,
    size: str | None,
    channels: int | None,
    fit: str | None,
    augment: str | None,
    dtype: str | None,
    label: str | None,
    asked: Asked,
    more: More,
    engine: str | None,
    reason: str,
    by: str,
    key_file: Path | None,
) -> None:
    """Put SOURCES into the collection SET, which is made when it is not there.

    A source is an image, a folder of images and shards at any depth, a WebDataset tar (.tar, .tar.gz, .tgz),
    a list of files (@FILE, one a line), an array of ready rows (.npy, .safetensors, .h5), or another collection
    of the same space, or a file that `negindex export` made of one, whose rows come over as they are. Nothing of an
    archive is written to the disk.

    Run again, it adds what is new, changes nothing else, and encodes nothing twice: killed, the same command goes
    on. An input that cannot become a row is named, stops nothing, and makes the exit code 3. What the disk has no
    room for is refused before it starts.
    """
    if pipeline is not None and (space or channels):
        raise click.UsageError("--pipeline says what the rows are; leave out --space and --channels")
    from negindex import Collection
    from negindex.engines.address import Address
    from negindex.errors import SpaceMismatch
    from negindex.geometry import Geometry

    place = None if engine is None else Address.of(engine)  # refused before anything is built
    shape = None if size is None else height_width(size)
    more.load()
    geometry = Geometry(fit or "cover", augment == "flip")
    found, key = asked.sources(sources, more, label), open_key_if_any(key_file)
    collection = Collection.open(set_path, key=key) if set_path.exists() else None
    if collection is None:
        collection, encoder = _new(set_path, found, shape, space, channels, pipeline, dtype, key, geometry, asked)
    elif (fit or augment) and geometry != collection.geometry:
        raise SpaceMismatch(
            f"{set_path} makes rows of images by {collection.geometry}, and asked for is {geometry}; build another set"
        )
    elif not _with_images(found):
        encoder = None
    elif shape is None:
        encoder = _encoder_of_set(collection, pipeline, asked)
    else:
        encoder = _encoder(collection, found, shape, channels, pipeline, asked)
    _check(collection, found, space, pipeline, encoder)
    asked.check_room(set_path, found, collection.shape, collection.dtype, encoder, collection.geometry, collection)
    left_out: SystemExit | None = None
    try:
        take_in(collection, found, encoder, asked, label=label, reason=reason, by=by, more=more)
    except SystemExit as some:  # the others are in force
        left_out = some
    if place is not None:
        _into_engine(collection, place, by)
    if left_out is not None:
        raise left_out


def _into_engine(collection: Collection, address: Address, by: str) -> None:
    """Calibrate a set that is not, and push its index."""
    from negindex.engines.push import push

    if collection.calibration() is None:
        click.echo(f"calibrating {collection.path}, without a reference", err=True)
        collection.calibrate(by=by)
    found = push(collection, address, lambda said: click.echo(said, err=True))
    click.echo(f"{address.text}: {found.rows} rows, {found.wrong} sent", err=True)


@click.command(
    epilog="""\b
Examples:
  negindex add demo/eights.set demo/digits/3 --label threes
  negindex add claims.set notice-17.png --pipeline models/my-pipeline --label claim-17
"""
)
@SET
@_SOURCES
@_PIPELINE
@_LABEL
@takes_inputs
@takes_more
@_REASON
@BY
@KEY
@errors_to_exit_codes
def add(
    set_path: Path,
    sources: tuple[str, ...],
    pipeline: Path | None,
    label: str | None,
    asked: Asked,
    more: More,
    reason: str,
    by: str,
    key_file: Path | None,
) -> None:
    """Put more in force in a collection that exists; SOURCES are what `negindex build` takes.

    A set in a pipeline's latent space needs that pipeline's folder again (--pipeline); another one is refused.
    When the command returns they are on the disk, and every sampler that follows the set obeys them from
    its next image on.
    """
    more.load()
    collection = open_set(set_path, key_file)
    found = asked.sources(sources, more, label)
    encoder = _encoder_of_set(collection, pipeline, asked) if _with_images(found) else None
    _check(collection, found, None, pipeline, encoder)
    asked.check_room(set_path, found, collection.shape, collection.dtype, encoder, collection.geometry, collection)
    take_in(collection, found, encoder, asked, label=label, reason=reason, by=by, more=more)


@click.command(
    epilog="""\b
Example:
  negindex build 1.set corpus/ --size 64 --shard 1/2
  negindex build 2.set corpus/ --size 64 --shard 2/2
  negindex merge whole.set 1.set 2.set
"""
)
@SET
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path))
@_REASON
@BY
@KEY
@click.option(
    "--ledger", type=click.Path(path_type=Path, dir_okay=False), help="Write one JSON line a row to this file."
)
@click.option("--json", "as_json", is_flag=True, help="The summary for machines.")
@errors_to_exit_codes
def merge(
    set_path: Path,
    parts: tuple[Path, ...],
    reason: str,
    by: str,
    key_file: Path | None,
    ledger: Path | None,
    as_json: bool,
) -> None:
    """Put the rows in force in the collections PARTS into SET, as they are stored; SET is made when it is not there.

    Keys, labels, hashes and embeddings come along, and in SET an in-house claim stands behind each row: claims, logs
    and what is kept out stay where they are. A key that SET holds with the same bytes changes nothing; with other
    bytes it is named, and makes the exit code 3. All parts must be of one space and shape.
    """
    from negindex import Collection
    from negindex.sampler.ingest import check_parts
    from negindex.sampler.sources import Held

    key = open_key_if_any(key_file)
    found: list[Source] = [Held(Collection.open(part)) for part in parts]
    like = Collection.open(set_path, key=key) if set_path.exists() else Collection.open(parts[0])
    check_parts(like.shape, like.space, found, like.geometry)
    if not set_path.exists():
        like = Collection.create(set_path, like.shape, like.stated_space, dtype=like.dtype, key=key)
    asked = Asked((), None, 1, 1, 1, None, ledger, None, as_json)
    _check(like, found, None, None, None)
    take_in(like, found, None, asked, label=None, reason=reason, by=by)


def _with_images(sources: list[Source]) -> list[Source]:
    """Those whose inputs may be images."""
    from negindex.sampler.sources import Array, Bundled, Held, Listed

    ready = (source for source in sources if isinstance(source, Array | Bundled | Held))
    lists = (source for source in sources if isinstance(source, Listed) and not source.has_images())
    rows = [*ready, *lists]
    return [source for source in sources if source not in rows]


def _encoder(
    collection: Collection | None,
    sources: list[Source],
    size: tuple[int, int],
    channels: int | None,
    pipeline: Path | None,
    asked: Asked,
) -> Encoder:
    from negindex.sampler.corpus import encoder_asked
    from negindex.sampler.ingest import chosen
    from negindex.sampler.sources import singly

    inputs = singly(chosen(_with_images(sources), ()))
    computed = {} if pipeline is None else asked.computed()
    return encoder_asked(collection, inputs, *size, channels=channels, pipeline=pipeline, **computed)


def _encoder_of_set(collection: Collection, pipeline: Path | None, asked: Asked) -> Encoder:
    from negindex.sampler.corpus import encoder_for

    return encoder_for(collection, pipeline, **({} if pipeline is None else asked.computed()))


def _new(
    path: Path,
    sources: list[Source],
    size: tuple[int, int] | None,
    space: str | None,
    channels: int | None,
    pipeline: Path | None,
    dtype: str | None,
    key: Key | None,
    geometry: Geometry,
    asked: Asked,
) -> tuple[Collection, Encoder | None]:
    """A new set, and what makes its rows where some of the inputs may be images."""
    from negindex import Collection
    from negindex.collection import DTYPES
    from negindex.geometry import stated
    from negindex.sampler.ingest import check_parts

    if not _with_images(sources):
        return _made_for_rows(path, sources, space, pipeline, dtype, key, geometry, asked), None
    if size is None:
        raise click.UsageError("--size is missing: height and width of the model's images")
    encoder = _encoder(None, sources, size, channels, pipeline, asked)
    if space is not None and space != encoder.space:
        raise click.UsageError(f"--space {space!r} is not what images become here: {encoder.space!r}")
    check_parts(encoder.shape, encoder.space, sources, geometry)
    dtype = dtype or DTYPES[0]
    asked.check_room(path, sources, encoder.shape, dtype, encoder, geometry)
    return Collection.create(path, encoder.shape, stated(encoder.space, geometry), dtype=dtype, key=key), encoder


def _made_for_rows(
    path: Path,
    sources: list[Source],
    space: str | None,
    pipeline: Path | None,
    dtype: str | None,
    key: Key | None,
    geometry: Geometry,
    asked: Asked,
) -> Collection:
    """A new set for ready rows: shaped as the first source's are."""
    from negindex import Collection
    from negindex.collection import DTYPES
    from negindex.geometry import COVER, stated
    from negindex.sampler.ingest import check_parts
    from negindex.sampler.sources import Array, Bundled, Held

    first = sources[0]
    if isinstance(first, Held | Bundled):
        about = first.about
        shape, space, dtype = about.shape, space or about.space, dtype or about.dtype
        geometry = about.geometry if geometry == COVER else geometry
    else:
        if space is None and pipeline is None:
            raise click.UsageError("an array does not say what its rows are: name the --pipeline, or the --space")
        if not isinstance(first, Array):
            raise click.UsageError("a list does not say its rows' shape: name one array before it, or add it to a set")
        shape = first.row_shape()
        space = space or _space_of(pipeline)
    check_parts(shape, space, sources, geometry)
    dtype = dtype or DTYPES[0]
    asked.check_room(path, sources, shape, dtype, None, geometry)
    return Collection.create(path, shape, stated(space, geometry), dtype=dtype, key=key)


def _check(
    collection: Collection, sources: list[Source], space: str | None, pipeline: Path | None, encoder: Encoder | None
) -> None:
    """Refuse rows of another space, as far as somebody says so, and a set that would go into itself."""
    from negindex.errors import NotAllowed
    from negindex.sampler.corpus import check_space
    from negindex.sampler.ingest import check_parts
    from negindex.sampler.sources import Bundled, Held

    if space is not None:
        check_space(collection, space)
    if pipeline is not None and encoder is None:
        check_space(collection, _space_of(pipeline))
    check_parts(collection.shape, collection.space, sources, collection.geometry)
    for source in sources:
        if isinstance(source, Held | Bundled) and source.about.set_id == collection.set_id:
            raise NotAllowed(
                f"{source.about.name} is {collection.path} as it is or was, and would bring back what was taken out "
                "since; name another set"
            )


def _space_of(pipeline: Path | None) -> str:
    from negindex.sampler.encode import space_of
    from negindex.sampler.vae import parts_in

    return space_of(parts_in(pipeline or Path()))


def height_width(size: str) -> tuple[int, int]:
    """--size as numbers; a usage error where it is none."""
    parts = size.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(
            f"{size!r}; give a number of pixels such as 64, or height x width such as 480x640", param_hint="--size"
        )
    return int(parts[0]), int(parts[-1])
