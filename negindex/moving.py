"""Rows taken to another place.

Write order, with what a crash in each gap leaves behind:

1. the record says where files are being taken     nothing else; it is cleared by the next change
2. each file is copied, and read back there        files that nothing names, swept by the next change
3. one SQLite transaction names them all           the sole commit point: rows lie there from now on
4. the files that they came from are let go        on record as outstanding, let go at the next writer's open
"""

from __future__ import annotations

from negindex.errors import OutOfRange
from negindex.rowstore import CACHE_BYTES, apart, checked_address, is_away
from negindex.states import Place
from negindex.store import Store


def move(store: Store, to: str | None, cache_bytes: int | None) -> int:
    """Have rows lie under an address, or in the set's folder; see ``Collection.move_rows``."""
    if cache_bytes is not None and cache_bytes < 0:
        raise OutOfRange(f"a cache of {cache_bytes} bytes; give 0, which keeps nothing, or more")
    catalogue, segments = store.catalogue, store.segments
    url = "" if to is None else f"{checked_address(to)}/{store.meta.set_id}"
    with store.writing():
        before = catalogue.place()
        limit = 0 if to is None else cache_bytes if cache_bytes is not None else before.cache_bytes or CACHE_BYTES
        files = [file for file in catalogue.segments() if (apart(file.file)[0] if is_away(file.file) else "") != url]
        if url and url != before.url:
            catalogue.put_rows_at(before._replace(moving=url))
            segments.own(url)
        carried = [(file, segments.carry(file, url).file) for file in files]
        stamps = tuple(pair for pair in catalogue.place().stamps if pair[0] == url)
        with catalogue.upkeep() as change:
            change.moved(carried)
            change.put_rows_at(Place(url, limit, stamps))
        segments.cache.shrink()
        store.settle()
        if before.url and before.url != url and not any(apart(one)[0] == before.url for one in catalogue.to_let_go()):
            segments.leave(before.url)
    return len(files)
