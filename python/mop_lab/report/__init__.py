"""Show finished runs as one HTML page: scores, tables, plots, configurations, predictions side by side."""

from mop_lab.report.page import report_page

__all__ = ["report_page"]
