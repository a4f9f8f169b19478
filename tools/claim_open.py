"""``negindex claim open | attach``: images, rows and hashes under a claim, after a look for what is like them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negindex.tools.claim_fields import FIELD, FIELDS, faults, told
from negindex.tools.claim_print import named_faults
from negindex.tools.claim_read import NUMBER
from negindex.tools.claim_steps import show_step
from negindex.tools.common import errors_to_exit_codes
from negindex.tools.options import AS_JSON, BY, KEY, PIPELINE, REASON, SET, open_set
from negindex.tools.showing import one_line, say, table

if TYPE_CHECKING:
    from negindex import Collection
    from negindex.regimes import Regime
    from negindex.sampler.corpus import Prepared
    from negindex.sampler.sweep import Sweep

_LABEL = click.option("--label", help="A label for the new rows, to guard against them or look them up by.")
_PREFIX = click.option("--prefix", default="", help="Put before each file's key, such as notice-17/.")


@click.command(
    "open",
    epilog="""\b
Examples:
  negindex claim open demo/eights.set --regime dmca --fields notice.toml demo/digits/8/0008.png --dry-run
  negindex claim open claims.set --regime take-it-down --fields - images/ --pipeline models/my-pipeline --by ann
  negindex claim open claims.set --regime hash-only --field source="a list" \\
      --hash sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff
""",
)
@SET
@click.argument("files", nargs=-1, metavar="[FILES]...", type=click.Path(path_type=Path))
@click.option("--regime", required=True, metavar="NAME", help="The rules: `negindex claim regimes` lists them.")
@click.option(
    "--key-of", "keys", metavar="SOURCE_KEY", multiple=True, help="A row that is in the set already; again for more."
)
@click.option(
    "--hash", "hashes", metavar="KIND:HEX", multiple=True, help="Content by its hash, sha256 or pdq; again for more."
)
@FIELDS
@FIELD
@_LABEL
@_PREFIX
@click.option("--with-similar", is_flag=True, help="Put rows in force that the files are like under the claim too.")
@PIPELINE
@BY
@REASON
@KEY
@click.option("--dry-run", is_flag=True, help="Say what is like the files and what is missing, and change nothing.")
@AS_JSON
@errors_to_exit_codes
def open_claim(
    set_path: Path,
    files: tuple[Path, ...],
    regime: str,
    keys: tuple[str, ...],
    hashes: tuple[str, ...],
    fields_file: Path | None,
    pairs: tuple[str, ...],
    label: str | None,
    prefix: str,
    with_similar: bool,
    pipeline: Path | None,
    by: str,
    reason: str,
    key_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take in a claim on images (FILES, folders at any depth), on rows that are there, or on hashes.

    Rows come into force when the claim is accepted. First it says which rows the files are like; a file that cannot
    become a row is named, and then nothing is changed.
    """
    collection = open_set(set_path, key_file)
    rules = collection.claims.regime(regime)
    fields = told(rules, fields_file, pairs)
    say(named_faults("as told, these will not do", faults(rules, fields), rules), err=True)
    _check_storable(rules, files, keys)
    prepared, found = _looked_at(collection, files, prefix, pipeline)
    like = [alike.source_key for _, alike in found.in_set if alike.in_force] if with_similar else []
    subject = _subject(collection, prepared, [*keys, *like], label)
    if dry_run:
        _say_what_would_be(collection, rules, fields, subject["source_keys"], hashes, found, as_json)
        return
    before = collection.newest().version
    claim = collection.claims.open(regime, fields, hashes=hashes, by=by, reason=reason, **subject)
    show_step(collection, before, claim, as_json, similar=_as_json(found))


@click.command(
    epilog="""\b
Example:
  negindex claim attach claims.set 17 more/ --by ann --reason "second mail of 4 May"
"""
)
@SET
@NUMBER
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@_LABEL
@_PREFIX
@PIPELINE
@BY
@REASON
@KEY
@AS_JSON
@errors_to_exit_codes
def attach(
    set_path: Path,
    number: int,
    files: tuple[Path, ...],
    label: str | None,
    prefix: str,
    pipeline: Path | None,
    by: str,
    reason: str,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Put more images under a claim: in force at once where it is live."""
    collection = open_set(set_path, key_file)
    _check_storable(collection.claims.regime(collection.claims.show(number).regime), files, ())
    subject = _subject(collection, _looked_at(collection, files, prefix, pipeline)[0], [], label)
    rows, keys = subject.pop("rows"), subject.pop("source_keys")
    before = collection.newest().version
    claim = collection.claims.attach(number, rows, keys, by=by, reason=reason, **subject)
    show_step(collection, before, claim, as_json)


def _check_storable(rules: Regime, files: Sequence[Path], keys: Sequence[str]) -> None:
    """Before a file is even read: a regime may allow no copy of the content."""
    from negindex.errors import NotAllowed

    if rules.storage == "hash-only" and (files or keys):
        raise NotAllowed(f"regime {rules.name} allows no copy of the content; give hashes alone (--hash)")


def _looked_at(
    collection: Collection, files: Sequence[Path], prefix: str, pipeline: Path | None
) -> tuple[Prepared, Sweep]:
    """Files as rows, and what is like them, which is told on stderr.

    Raises ImageRefused or ContentRefused that names every file that cannot become a row.
    """
    from negindex.sampler.corpus import Prepared, encoder_for, prepare, sources_in
    from negindex.sampler.encode import PIXELS
    from negindex.sampler.sweep import Sweep, sweep

    if not files:
        return Prepared(), Sweep()
    inputs = [(prefix + key, file) for key, file in sources_in(files)]
    encoder = encoder_for(collection, pipeline)
    with click.progressbar(length=len(inputs), label="encoding", file=sys.stderr) as bar:
        prepared = prepare(collection, inputs, encoder, progress=lambda _: bar.update(1))
    _check_all_will_do(prepared.refused)
    found = sweep(collection, inputs, encoder=encoder if collection.space == PIXELS else None, ever=True)
    _say_what_is_like(found)
    return prepared, found


def _check_all_will_do(refused: Sequence[tuple[str, str]]) -> None:
    from negindex.errors import ContentRefused, ImageRefused
    from negindex.sampler.sweep import BARRED

    if refused:
        said = "nothing was changed, because of " + "; ".join(f"{key}: {why}" for key, why in refused)
        barred = [key for key, why in refused if why == BARRED]
        raise ContentRefused(said, barred) if barred else ImageRefused(said)


def _say_what_is_like(found: Sweep) -> None:
    rows = [
        (key, alike.source_key, alike.row, f"{alike.distance:g}", alike.by, "yes" if alike.in_force else "no")
        for key, alike in found.in_set
    ]
    say(table(("file", "is like the row", "id", "distance", "by", "in force"), rows) if rows else [], err=True)
    say((f"like each other: {', '.join(map(one_line, group))}" for group in found.among), err=True)
    if not (found.in_set or found.among):
        click.echo("nothing in the set is like them", err=True)


def _subject(collection: Collection, prepared: Prepared, asked: Sequence[str], label: str | None) -> dict[str, Any]:
    """What the claim is on: new rows, and rows that are there, which go along as they are stored."""
    import numpy as np

    there = [key for key in dict.fromkeys(asked) if key not in prepared.keys]
    held = collection.rows_under(there)
    if not prepared.keys:
        return {"source_keys": there}
    return {
        "rows": np.concatenate([np.stack(prepared.rows), held]),
        "source_keys": [*prepared.keys, *there],
        "label": label,
        "sources": [*prepared.sources, *([None] * len(there))],
    }


def _say_what_would_be(
    collection: Collection,
    rules: Regime,
    fields: dict[str, Any],
    keys: Sequence[str],
    hashes: Sequence[str],
    found: Sweep,
    as_json: bool,
) -> None:
    missing = {f.name: str(f.fault(fields.get(f.name))) for f in rules.missing(fields, "accepted")}
    if as_json:
        said = {"regime": rules.name, "rows": list(keys), "hashes": list(hashes), "missing": missing}
        click.echo(json.dumps(said | {"similar": _as_json(found)}, ensure_ascii=False))
    else:
        say(map(one_line, keys))
        say(hashes)
        say(named_faults("missing before it can be accepted", missing, rules))
    click.echo(
        f"{collection.path}: a claim under {rules.name} on {len(keys)} rows and {len(hashes)} hashes would be "
        "opened; nothing was changed",
        err=True,
    )


def _as_json(found: Sweep) -> dict[str, Any]:
    return {"in_set": [{"file": key, **alike._asdict()} for key, alike in found.in_set], "among": found.among}
