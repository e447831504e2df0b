"""What a key stands for, from its reservation to its end."""

from flux2_async.coordination.contract import Claim, KeyEntry
from flux2_async.coordination.key_state import KeyRow, bind, free, reserve, resolve, view

MINE = Claim("key", "print", "mine", "o1")
OTHER = Claim("key", "print", "mine", "o2")
DAY = 24 * 3600.0


def reserved(claim: Claim = MINE, now: float = 0.0) -> KeyRow:
    row, entry = reserve(None, claim, now, lease=70.0, ttl=DAY)
    assert row is not None
    assert entry is None
    return row


def test_reserved_key_is_not_given_twice() -> None:
    """The second who reserves learns what the key stands for, and changes nothing."""
    row = reserved()

    assert reserve(row, OTHER, 10.0, lease=70.0, ttl=DAY) == (row, KeyEntry("print", "mine", "sending", wait=60.0))


def test_owner_that_died_leaves_unknown() -> None:
    """A reservation that nobody ended is unknown afterwards, never free, until the day is over."""
    row = reserved()

    assert view(row, 70.0) == KeyEntry("print", "mine", "unknown")
    assert reserve(row, OTHER, 71.0, lease=70.0, ttl=DAY)[1] == KeyEntry("print", "mine", "unknown")
    assert view(row, 24 * 3600.0 - 1) is not None
    assert view(row, 24 * 3600.0) is None


def test_owner_tells_the_task() -> None:
    """A bound key stands for its task, whatever was believed before."""
    for row in (
        reserved(),
        bind(reserved(), MINE, None, 1.0, ttl=DAY),
        resolve(bind(reserved(), MINE, None, 1.0, ttl=DAY), "mine", "t0", 2.0),
    ):
        assert view(bind(row, MINE, "t1", 3.0, ttl=DAY), 100.0) == KeyEntry("print", "mine", "bound", "t1")


def test_owner_reserves_again() -> None:
    """Who knows that its POST created nothing reserves again, even late; another claim of the same name does not."""
    row, entry = reserve(reserved(), MINE, 100.0, lease=70.0, ttl=DAY)

    assert entry is None
    assert view(row, 100.0) == KeyEntry("print", "mine", "sending", wait=70.0)
    assert reserve(bind(row, MINE, None, 100.0, ttl=DAY), MINE, 101.0, lease=70.0, ttl=DAY)[1] == KeyEntry(
        "print", "mine", "unknown"
    )


def test_only_the_owner_frees() -> None:
    """A key is freed by who reserved it, as long as no task is known."""
    row = reserved()

    assert free(row, OTHER) is row
    assert free(row, MINE) is None
    bound = bind(row, MINE, "t1", 1.0, ttl=DAY)
    assert free(bound, MINE) is bound
    assert bind(row, OTHER, "t2", 1.0, ttl=DAY) is row


def test_callback_resolves_only_what_is_unknown() -> None:
    """A callback tells the task of an unknown key, not of one whose reply may still come, and not of another ref's."""
    row, unknown = reserved(), bind(reserved(), MINE, None, 1.0, ttl=DAY)

    assert resolve(row, "mine", "t1", 1.0) is row
    assert resolve(unknown, "other", "t1", 1.0) is unknown
    assert view(resolve(unknown, "mine", "t1", 1.0), 2.0) == KeyEntry("print", "mine", "bound", "t1")
    assert view(resolve(row, "mine", "t1", 71.0), 72.0) == KeyEntry("print", "mine", "bound", "t1")


def test_lost_row_is_written_anew() -> None:
    """What an owner knows survives a state that was lost in between."""
    assert view(bind(None, MINE, "t1", 5.0, ttl=DAY), 6.0) == KeyEntry("print", "mine", "bound", "t1")
    assert view(bind(None, MINE, None, 5.0, ttl=DAY), 6.0) == KeyEntry("print", "mine", "unknown")
    assert free(None, MINE) is None
