"""The report of a batch: one page to look at."""

from flux2_async.batch.report.report import write_report

__all__ = ["write_report"]
