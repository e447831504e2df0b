"""The report of a batch: one page to look at, as a file, or served while the batch runs.

It needs the extra `cli`; importing it without raises ImportError, which says how to install it.
"""

from flux2_async.batch.report.report import write_report
from flux2_async.batch.report.server import serve_report

__all__ = ["serve_report", "write_report"]
