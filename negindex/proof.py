"""What stands of a receipt: the checks of ``offline``, asked from Python and of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from negindex import offline
from negindex.checkpoint import Checkpoint
from negindex.errors import Damaged, InvalidInput, NotThere
from negindex.keys import PublicKey
from negindex.log import Record
from negindex.offline import Line
from negindex.receipts import Receipt


def prove(
    receipt: Receipt | Path,
    logs: Iterable[Iterable[Record] | Path] = (),
    *,
    checkpoints: Iterable[Checkpoint | Path] = (),
    public: Iterable[PublicKey | Path] = (),
    image: Path | None = None,
    rows: Iterable[int] = (),
) -> list[Line]:
    """All that can be said of a receipt: a verdict (holds, FALSE, cannot tell) and what it is of, each.

    Each part as an object or as the file that holds it. logs: ``Collection.log()``, or what `negindex log SET --json`
    printed; each is matched with the receipt by the set that it names. checkpoints: exported, and kept elsewhere than
    the set. public: keys of those whom the caller knows; any other proves nothing of who signed. rows: asked for by id.
    Raises Damaged for what cannot be read, NotThere for a file that is none.
    """
    with _readable():
        return offline.check(
            offline.read(_receipt(receipt), _named(receipt, "the receipt"), offline.RECEIPT),
            [_log(log, number) for number, log in enumerate(logs, 1)],
            {_named(one, str(number)): _checkpoint(one) for number, one in enumerate(checkpoints, 1)},
            {_named(one, "the key given"): _public(one) for one in public},
            image,
            rows,
        )


def _receipt(given: Receipt | Path) -> str | bytes:
    return given.to_json() if isinstance(given, Receipt) else given.read_bytes()


def _log(given: Iterable[Record] | Path, number: int) -> offline.Log:
    if isinstance(given, Path):
        return offline.Log(given.read_bytes(), str(given))
    return offline.Log("\n".join(record.to_json() for record in given).encode(), f"log {number}")


def _checkpoint(given: Checkpoint | Path) -> dict[str, object]:
    return asdict(given if isinstance(given, Checkpoint) else Checkpoint.load(given))


def _public(given: PublicKey | Path) -> str:
    return given.text if isinstance(given, PublicKey) else offline.public_key(given)


def _named(given: object, otherwise: str) -> str:
    return str(given) if isinstance(given, Path) else given.id if isinstance(given, PublicKey) else otherwise


@contextmanager
def _readable() -> Iterator[None]:
    """In this package's words, what the script says in its own."""
    try:
        yield
    except (offline.CannotRead, RecursionError) as error:
        raise Damaged(f"cannot read: {error}") from error
    except FileNotFoundError as error:
        raise NotThere(f"{error.filename} is not there; name a file that is") from error
    except (IsADirectoryError, PermissionError) as error:
        raise InvalidInput(f"{error.filename} cannot be read ({error.strerror}); give a file of yours") from error
