"""Merkle trees: the published roots, the RFC's own recursive definition, and proofs that no change survives."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negindex import merkle
from negindex.errors import Damaged, OutOfRange

PUBLISHED = {  # the roots of certificate transparency's test vectors, by the entries so far
    b"": "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    b"\x00": "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    b"\x10": "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    b" !": "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    b"01": "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    b"@ABC": "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    b"PQRSTUVW": "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    b"`abcdefghijklmno": "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}
SIZES = st.integers(1, 300)
ENTRIES = [f"entry {i}".encode() for i in range(300)]


def grown(size):
    tree = merkle.Tree()
    for entry in ENTRIES[:size]:
        tree.append(entry)
    return tree


TREE = grown(300)


# -- RFC 6962, section 2.1, as it is written there ---------------------------------------------


def sha256(data):
    return hashlib.sha256(data).digest()


def split(n):
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def mth(entries):
    if not entries:
        return sha256(b"")
    if len(entries) == 1:
        return sha256(b"\x00" + entries[0])
    k = split(len(entries))
    return sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:]))


def audit_path(m, entries):
    if len(entries) == 1:
        return []
    k = split(len(entries))
    if m < k:
        return [*audit_path(m, entries[:k]), mth(entries[k:])]
    return [*audit_path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m, entries, whole):
    if m == len(entries):
        return [] if whole else [mth(entries)]
    k = split(len(entries))
    if m <= k:
        return [*subproof(m, entries[:k], whole), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


# -- trees -------------------------------------------------------------------------------------


def test_the_published_roots():
    entries = list(PUBLISHED)
    assert merkle.root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert [merkle.root(entries[: n + 1]).hex() for n in range(len(entries))] == list(PUBLISHED.values())
    tree = merkle.Tree()
    assert [tree.append(entry).hex() for entry in entries] == list(PUBLISHED.values())


def test_every_small_log_is_hashed_and_proved_as_the_rfc_defines_it():
    for size in range(1, 33):
        entries = ENTRIES[:size]
        assert merkle.root(entries) == TREE.root(size) == mth(entries)
        for other in range(size):
            assert merkle.inclusion(entries, other, size) == audit_path(other, entries)
            assert merkle.consistency(entries, other + 1, size) == subproof(other + 1, entries, True)
        assert merkle.consistency(entries, 0, size) == []


@given(SIZES, st.data())
@settings(deadline=None)
def test_a_grown_tree_still_has_the_roots_and_proofs_of_its_past(size, data):
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    assert TREE.root(size) == mth(ENTRIES[:size])
    assert TREE.inclusion(index, size) == audit_path(index, ENTRIES[:size])
    assert TREE.consistency(old, size) == subproof(old, ENTRIES[:size], True)


class Counting(dict):
    """A table that counts what is read and written."""

    reads = writes = 0

    def get(self, key, default=None):
        self.reads += 1
        return super().get(key, default)

    def __setitem__(self, key, value):
        assert key not in self, "a node is written once"
        self.writes += 1
        super().__setitem__(key, value)


def test_roots_and_proofs_read_few_nodes_and_a_log_writes_two_an_entry():
    nodes = Counting()
    tree = merkle.Tree(nodes)
    for entry in range(4095):
        nodes.reads = 0
        tree.append(b"%d" % entry)
        assert nodes.reads <= 2 * 12
    assert nodes.writes < 2 * 4095
    asked = [tree.root, lambda: tree.inclusion(7), lambda: tree.inclusion(4094), lambda: tree.consistency(1234)]
    for ask in asked:
        nodes.reads = 0
        ask()
        assert nodes.reads <= 2 * 12


def test_a_tree_goes_on_from_its_saved_nodes():
    kept = dict(grown(100).nodes)
    kept[0, 100] = kept[2, 25] = b"of a transaction that never ended"
    tree = merkle.Tree(kept, 100)
    for size, entry in enumerate(ENTRIES[100:110], 101):
        assert tree.append(entry) == mth(ENTRIES[:size])


@pytest.mark.parametrize("lost", [None, b"short", "text" * 8])
def test_a_lost_or_broken_node_is_damage(lost):
    nodes = dict(grown(6).nodes)
    nodes[1, 2] = lost
    with pytest.raises(Damaged, match=r"node 2 of level 1 is .* rebuild"):
        merkle.Tree(nodes, 6).root()


@pytest.mark.parametrize(
    "ask",
    [
        lambda tree: tree.root(6),
        lambda tree: tree.root(-1),
        lambda tree: tree.inclusion(5),
        lambda tree: tree.inclusion(-1),
        lambda tree: tree.inclusion(3, 3),
        lambda tree: tree.inclusion(0, 0),
        lambda tree: tree.consistency(4, 3),
        lambda tree: tree.consistency(3, 6),
        lambda _: merkle.Tree({}, -1),
    ],
)
def test_nothing_is_said_about_a_log_that_is_not_there(ask):
    with pytest.raises(OutOfRange):
        ask(grown(5))


# -- proofs ------------------------------------------------------------------------------------


def flipped(value, bit):
    changed = bytearray(value)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def changes(path, data):
    """The path with one bit flipped, an entry left out, one too many, two swapped, one cut short, or as text."""
    yield [*path, mth([])]
    yield [mth([]), *path]
    if path:
        i, bit = data.draw(st.integers(0, len(path) - 1)), data.draw(st.integers(0, 255))
        yield [*path[:i], flipped(path[i], bit), *path[i + 1 :]]
        yield path[:i] + path[i + 1 :]
        yield [*path[:i], path[i][:-1], *path[i + 1 :]]
        yield [*path[:i], path[i].hex(), *path[i + 1 :]]
    if len(path) > 1:
        i, j = sorted(data.draw(st.lists(st.integers(0, len(path) - 1), min_size=2, max_size=2, unique=True)))
        yield [*path[:i], path[j], *path[i + 1 : j], path[i], *path[j + 1 :]]


@given(SIZES, st.data())
@settings(deadline=None)
def test_an_inclusion_proof_holds_for_its_entry_place_size_and_root_alone(size, data):
    index, other = data.draw(st.integers(0, size - 1)), data.draw(SIZES)
    entry, root, path = ENTRIES[index], TREE.root(size), TREE.inclusion(index, size)
    assert merkle.check_inclusion(entry, index, size, path, root)
    assert not any(merkle.check_inclusion(entry, index, size, changed, root) for changed in changes(path, data))
    assert not merkle.check_inclusion(entry, index, size, path, flipped(root, data.draw(st.integers(0, 255))))
    assert not merkle.check_inclusion(entry + b" ", index, size, path, root)
    assert not merkle.check_inclusion(merkle.leaf_hash(entry), index, size, path, root)
    for place in {other - 1, index - 1, index + 1, index ^ 1, -1, size} - {index}:
        assert not merkle.check_inclusion(entry, place, size, path, root)
    if other != size:
        assert not merkle.check_inclusion(entry, index, other, path, TREE.root(other))


@given(SIZES, st.data())
@settings(deadline=None)
def test_a_consistency_proof_holds_for_its_two_logs_alone(new, data):
    old, other = data.draw(st.integers(1, new)), data.draw(SIZES)
    roots, path = (TREE.root(old), TREE.root(new)), TREE.consistency(old, new)
    assert merkle.check_consistency(old, new, *roots, path)
    assert not any(merkle.check_consistency(old, new, *roots, changed) for changed in changes(path, data))
    for i in (0, 1):
        wrong = [*roots]
        wrong[i] = flipped(roots[i], data.draw(st.integers(0, 255)))
        assert not merkle.check_consistency(old, new, *wrong, path)
    if old != new:
        assert not merkle.check_consistency(new, old, *roots, path)
        assert not merkle.check_consistency(old, new, *roots[::-1], path)
    if other not in (old, new):
        assert not merkle.check_consistency(other, new, TREE.root(other), roots[1], path)
        assert not merkle.check_consistency(old, other, roots[0], TREE.root(other), path)


@given(SIZES, st.data())
@settings(deadline=None)
def test_a_path_of_another_length_is_no_proof_even_of_the_root_that_it_leads_to(size, data):
    """Else a subtree, or a tree around the log, could be shown as the log."""
    index, old, above = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size)), mth([b"above"])
    path, root = TREE.inclusion(index, size), TREE.root(size)
    for grown in (merkle.node_hash(above, root), merkle.node_hash(root, above)):
        assert not merkle.check_inclusion(ENTRIES[index], index, size, [*path, above], grown)
    for level in range((size - 1).bit_length()):  # each subtree around the entry, shown as the log
        first = index >> level << level
        part = ENTRIES[first : min(size, first + (1 << level))]
        assert not merkle.check_inclusion(ENTRIES[index], index, size, audit_path(index - first, part), mth(part))
    path, roots = TREE.consistency(old, size), (TREE.root(old), root)
    both = [merkle.node_hash(above, whole) for whole in roots]
    assert not merkle.check_consistency(old, size, *both, [*path, above])
    middle = split(size)
    if middle < old < size:  # the right halves alone, shown as the two logs
        halves = mth(ENTRIES[middle:old]), mth(ENTRIES[middle:size])
        assert not merkle.check_consistency(old, size, *halves, path[:-1])


@given(st.integers(2, 300), st.data())
@settings(deadline=None)
def test_a_log_that_was_changed_below_has_no_proof(new, data):
    """An edit, a swap or a deletion among the old entries: neither honest nor changed paths lead to both roots."""
    old = data.draw(st.integers(2, new))
    i = data.draw(st.integers(0, old - 2))
    edited = [*ENTRIES[:i], b"edited", *ENTRIES[i + 1 : new]]
    swapped = [*ENTRIES[:i], ENTRIES[i + 1], ENTRIES[i], *ENTRIES[i + 2 : new]]
    shorter = [*ENTRIES[:i], *ENTRIES[i + 1 : new + 1]]
    for log in (edited, swapped, shorter):
        tree = merkle.Tree.of(log[:new])
        if tree.size >= old:
            for path in (tree.consistency(old), TREE.consistency(old, tree.size)):
                assert not merkle.check_consistency(old, tree.size, TREE.root(old), tree.root(), path)


def test_the_empty_log_stands_at_the_front_of_every_log_and_no_other_does():
    empty, five = merkle.root([]), TREE.root(5)
    assert merkle.check_consistency(0, 5, empty, five, [])
    assert merkle.check_consistency(0, 0, empty, empty, [])
    assert not merkle.check_consistency(0, 0, empty, five, [])
    assert not merkle.check_consistency(0, 0, five, five, [])
    assert not merkle.check_consistency(0, 5, five, five, [])
    assert not merkle.check_consistency(0, 5, empty, five, [empty])
    assert not merkle.check_consistency(-1, 5, empty, five, [])
    assert not merkle.check_inclusion(b"", 0, 0, [], empty)


def test_an_entry_cannot_pass_for_a_node():
    """Two entries' hashes, put together as one entry, do not give the root of the two."""
    a, b = ENTRIES[:2]
    assert merkle.root([merkle.leaf_hash(a) + merkle.leaf_hash(b)]) != merkle.root([a, b])
    assert merkle.node_hash(merkle.leaf_hash(a), merkle.leaf_hash(b)) == merkle.root([a, b])
