"""What became of every request, in a file: all SQL of the package, and the checks of what SQLite keeps."""

from flux2_async.batch.journal.journal import Journal, JournalError, UnknownRequest

__all__ = ["Journal", "JournalError", "UnknownRequest"]
