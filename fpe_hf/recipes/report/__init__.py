"""The report of a run, as HTML and as Markdown: what came out, in words, pictures and tables.

`comparison` and `curves` read the results; `words`, `figures` and `tables` say and show them;
`latency` and `environment` add what the results do not hold; `content` puts the sections together
and `page` writes them.
"""

from .latency import Latency, Timing, measure_latency, measure_saved
from .page import write_report

__all__ = ["Latency", "Timing", "measure_latency", "measure_saved", "write_report"]
