"""What a finished run looks like to a person: one self-contained page, and one line."""

from longtail.reporting.in_words import warnings
from longtail.reporting.one_line import fold_summary, summary
from longtail.reporting.report import write_report

__all__ = ["fold_summary", "summary", "warnings", "write_report"]
