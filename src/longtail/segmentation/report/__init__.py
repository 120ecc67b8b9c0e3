"""What a run on masks tells people: one page with figures and, for the rarest classes, pictures."""

from longtail.segmentation.report.gallery import write_dense_gallery
from longtail.segmentation.report.page import write_dense_report

__all__ = ["write_dense_gallery", "write_dense_report"]
