"""What a finished run looks like to a person: one self-contained page, and one line."""

from longtail.reporting.in_words import unlearned, warnings
from longtail.reporting.one_line import fold_summary, summary
from longtail.reporting.report import write_report
from longtail.reporting.run_record import read_log

__all__ = ["fold_summary", "read_log", "summary", "unlearned", "warnings", "write_report"]
