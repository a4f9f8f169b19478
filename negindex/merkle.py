"""An append-only log as one hash: Merkle trees, inclusion and consistency proofs.

Leaves are the entries' bytes; every hash is 32 bytes of SHA-256. The tree of n leaves splits at the
largest power of two below n. The checks need no tree, only what a checkpoint states: its size and
its root, which belong together: a proof is worth what the signature under that pair is worth.
Source: RFC 6962, section 2.1; the checks' loops are those of RFC 9162, sections 2.1.3.2 and 2.1.4.2.

>>> entries = [b"claim", b"withdrawn", b"erased"]
>>> path = inclusion(entries, 1, 3)
>>> check_inclusion(b"withdrawn", 1, 3, path, root(entries))
True
>>> check_consistency(2, 3, root(entries[:2]), root(entries), consistency(entries, 2, 3))
True
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import TypeGuard

from negindex.errors import Damaged, OutOfRange

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()


def leaf_hash(data: bytes) -> bytes:
    """The hash of one entry; the 0x00 in front keeps an entry from passing for a node."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees' hashes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaves: Iterable[bytes]) -> bytes:
    """The hash of a whole log, level by level; an odd one goes up as it is."""
    level = list(map(leaf_hash, leaves))
    while len(level) > 1:
        paired = list(map(node_hash, level[::2], level[1::2]))
        level = paired + level[2 * len(paired) :]
    return level[0] if level else EMPTY_ROOT


def inclusion(leaves: Sequence[bytes], index: int, size: int) -> list[bytes]:
    """Proof that ``leaves[index]`` is an entry of the log's first ``size`` entries: sibling hashes, lowest first."""
    return Tree.of(leaves).inclusion(index, size)


def consistency(leaves: Sequence[bytes], old: int, new: int) -> list[bytes]:
    """Proof that the first ``old`` entries stand unchanged at the front of the first ``new``."""
    return Tree.of(leaves).consistency(old, new)


class Tree:
    """A log that only grows: the root and the proofs of every size it ever had, in O(log n) node reads.

    nodes: (level, index) -> hash of the complete subtree over the leaves index·2^level up to
    (index + 1)·2^level; level 0 holds the leaves' hashes. A dictionary, or a table of about 2n rows.
    Each key is written once while the tree grows; keys beyond ``size`` are written over.
    Raises Damaged when a node that the size calls for is missing or no hash.
    """

    def __init__(self, nodes: MutableMapping[tuple[int, int], bytes] | None = None, size: int = 0) -> None:
        if size < 0:
            raise OutOfRange(f"a tree of {size} leaves; its size is 0 or more")
        self.nodes: MutableMapping[tuple[int, int], bytes] = {} if nodes is None else nodes
        self.size = size

    @classmethod
    def of(cls, leaves: Iterable[bytes]) -> Tree:
        """The tree of a whole log, in memory."""
        tree = cls()
        for leaf in leaves:
            tree._grow(leaf)
        return tree

    def append(self, leaf: bytes) -> bytes:
        """Add one entry and return the root of the grown log; amortised two writes."""
        self._grow(leaf)
        return self.root()

    def root(self, size: int | None = None) -> bytes:
        """The hash of the first ``size`` entries; of all of them when None."""
        size = self.size if size is None else size
        self._check(0, size, self.size)
        return self._over(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """See ``inclusion``. Raises OutOfRange unless 0 <= index < size <= the tree's size."""
        size = self.size if size is None else size
        self._check(1, size, self.size)
        self._check(0, index, size - 1)
        return list(self._path(index, 0, size))[::-1]

    def consistency(self, old: int, new: int | None = None) -> list[bytes]:
        """See ``consistency``; empty for old = 0 and old = new. Raises OutOfRange unless 0 <= old <= new <= size."""
        new = self.size if new is None else new
        self._check(0, new, self.size)
        self._check(0, old, new)
        return list(self._difference(old, 0, new, whole=True))[::-1] if old else []

    def _grow(self, leaf: bytes) -> None:
        level, index, found = 0, self.size, leaf_hash(leaf)
        self.nodes[level, index] = found
        while index & 1:
            found = node_hash(self._node(level, index - 1), found)
            level, index = level + 1, index >> 1
            self.nodes[level, index] = found
        self.size += 1

    def _node(self, level: int, index: int) -> bytes:
        found = self.nodes.get((level, index))
        if not _is_hash(found):
            raise Damaged(f"node {index} of level {level} is {found!r}, no hash; rebuild the tree from the log")
        return found

    def _over(self, first: int, end: int) -> bytes:
        """The hash over leaves first to end - 1, where a subtree of the log may begin at ``first``."""
        count = end - first
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self._node(level, first >> level)
        middle = first + _split(count)
        return node_hash(self._over(first, middle), self._over(middle, end))

    def _path(self, index: int, first: int, end: int) -> Iterator[bytes]:
        """Siblings on the way down from the root to the leaf: an incomplete one at most once, so O(log n)."""
        while end - first > 1:
            middle = first + _split(end - first)
            if index < middle:
                yield self._over(middle, end)
                end = middle
            else:
                yield self._over(first, middle)
                first = middle

    def _difference(self, old: int, first: int, end: int, whole: bool) -> Iterator[bytes]:
        """RFC 6962's SUBPROOF on the way down; ``whole`` while the old log itself is the subtree."""
        while old != end:
            middle = first + _split(end - first)
            if old <= middle:
                yield self._over(middle, end)
                end = middle
            else:
                yield self._over(first, middle)
                first, whole = middle, False
        if not whole:
            yield self._over(first, end)

    def _check(self, least: int, value: int, most: int) -> None:
        if not least <= value <= most:
            raise OutOfRange(f"{value} for a log of {self.size} entries; give {least} to {most}")


def check_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether ``path`` proves that ``leaf`` is entry ``index`` of the log that has this size and root."""
    if not (0 <= index < size and _is_hash(root) and all(map(_is_hash, path))):
        return False
    at, last, found = index, size - 1, leaf_hash(leaf)
    for sibling in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            at, last = _up_to_a_right_child(at, last)
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def check_consistency(old_size: int, new_size: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether ``path`` proves that the old log stands unchanged at the front of the new one.

    An empty log stands at the front of every log: then the path is empty, and so must the old root be.
    """
    if not (0 <= old_size <= new_size and all(map(_is_hash, [old_root, new_root, *path]))):
        return False
    if new_size == 0 and new_root != EMPTY_ROOT:
        return False
    if old_size in (0, new_size):
        return not path and old_root == (new_root if old_size else EMPTY_ROOT)
    complete = old_size & (old_size - 1) == 0  # then the old root is itself a node of the new tree
    hashes = [old_root, *path] if complete else list(path)
    return _replay(old_size - 1, new_size - 1, hashes) == (old_root, new_root)


def _replay(at: int, last: int, hashes: list[bytes]) -> tuple[bytes, bytes] | None:
    """The old and the new root that a consistency path leads to; None when it is too short or too long."""
    while at & 1:
        at, last = at >> 1, last >> 1
    if not hashes:
        return None
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return None
        if at & 1 or at == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            at, last = _up_to_a_right_child(at, last)
        else:
            new = node_hash(new, sibling)
        at, last = at >> 1, last >> 1
    return (old, new) if last == 0 else None


def _up_to_a_right_child(at: int, last: int) -> tuple[int, int]:
    """Skip the levels at which the last node has no sibling and is carried up as it is."""
    while at and not at & 1:
        at, last = at >> 1, last >> 1
    return at, last


def _split(count: int) -> int:
    """The largest power of two below ``count`` >= 2."""
    return 1 << ((count - 1).bit_length() - 1)


def _is_hash(value: object) -> TypeGuard[bytes]:
    return isinstance(value, bytes) and len(value) == HASH_BYTES
