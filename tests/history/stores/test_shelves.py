"""What the store in memory keeps."""

from __future__ import annotations

from netra_ws.history.stores.shelves import Ledger
from tests.contract.rows import message


def test_a_removed_message_leaves_nothing() -> None:
    """Where all messages were removed, neither words nor threads of theirs are remembered."""
    ledger = Ledger()
    ledger.add(message("m", "hello there"))
    ledger.add(message("n", "hello again", seq=2))
    ledger.remove("m")
    assert ledger.found.keys() == {"hello", "again"}
    ledger.remove("n")
    assert ledger == Ledger()
