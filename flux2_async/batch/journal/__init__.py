"""What became of every request, in a file: all SQL of the package, and the checks of what SQLite keeps."""

from flux2_async.batch.journal.decisions import UnknownRequest
from flux2_async.batch.journal.journal import Journal
from flux2_async.batch.journal.schema import JournalError

__all__ = ["Journal", "JournalError", "UnknownRequest"]
