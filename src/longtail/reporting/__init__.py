"""What a finished run looks like to a person: one self-contained page."""

from longtail.reporting.report import write_report

__all__ = ["write_report"]
