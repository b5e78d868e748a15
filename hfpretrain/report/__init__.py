"""The report: a page of a run, or of several, with their curves. One file that asks nothing of any network."""

from hfpretrain.report.comparison import comparison
from hfpretrain.report.curves import Curves
from hfpretrain.report.page import page
from hfpretrain.report.told import Told
from hfpretrain.report.writing import is_page, write_comparison, write_page

__all__ = ["Curves", "Told", "comparison", "is_page", "page", "write_comparison", "write_page"]
