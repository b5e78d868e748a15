"""The report: a page of a run, or of several, with their curves. One file that asks nothing of any network."""

from hfpretrain.report.comparison import comparison
from hfpretrain.report.curves import Curves
from hfpretrain.report.page import page
from hfpretrain.report.told import Told
from hfpretrain.report.writing import write_comparison, write_page, write_text

__all__ = ["Curves", "Told", "comparison", "page", "write_comparison", "write_page", "write_text"]
