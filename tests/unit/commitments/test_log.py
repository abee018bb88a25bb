"""The log in the database is the protocol's Merkle tree, at every size."""

from __future__ import annotations

from pocache.protocol.merkle import EMPTY_ROOT, MerkleTree, verify_consistency
from pocache.storage.store import Store
from pocache_commitments.log import append_entry, get_root, get_size
from pocache_commitments.tables import METADATA


def test_roots_are_those_of_the_tree_at_every_size() -> None:
    """Forty entries; older roots stay what they were."""
    tree = MerkleTree()
    store = Store("sqlite://", METADATA)
    with store.begin() as connection:
        assert get_size(connection) == 0
        assert get_root(connection, 0) == EMPTY_ROOT
        for number in range(40):
            entry = b"entry %d" % number
            assert append_entry(connection, entry) == tree.append(entry) == number
            assert get_size(connection) == number + 1
            assert get_root(connection, number + 1) == tree.root()
        for size in range(1, 41):
            root = get_root(connection, size)
            verify_consistency(size, 40, root, tree.root(), tree.consistency_proof(size))
    store.close()


def test_an_append_that_is_rolled_back_leaves_nothing() -> None:
    """The next append takes its place."""
    store = Store("sqlite://", METADATA)
    with store.begin() as connection:
        append_entry(connection, b"first")
        savepoint = connection.begin_nested()
        append_entry(connection, b"undone")
        savepoint.rollback()
        assert append_entry(connection, b"second") == 1
        tree = MerkleTree()
        tree.append(b"first")
        tree.append(b"second")
        assert get_root(connection, 2) == tree.root()
    store.close()
