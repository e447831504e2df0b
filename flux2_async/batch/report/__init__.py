"""The report of a batch: one page to look at, as a file, or served while the batch runs."""

from flux2_async.batch.report.report import write_report
from flux2_async.batch.report.server import serve_report

__all__ = ["serve_report", "write_report"]
