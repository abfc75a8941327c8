"""The report of a run, as HTML and as Markdown: what came out, in words, pictures and tables.

`curves` reads the results; `words`, `figures` and `tables` say and show them; `latency` and
`environment` add what the results do not hold; `content` puts the sections together and `page`
writes them, `again` from the files of a run.
"""

from .again import keep_measured, report_again
from .latency import Latency, Timing, measure_latency, measure_saved
from .page import write_report
from .sweep import write_sweep

__all__ = [
    "Latency",
    "Timing",
    "keep_measured",
    "measure_latency",
    "measure_saved",
    "report_again",
    "write_report",
    "write_sweep",
]
