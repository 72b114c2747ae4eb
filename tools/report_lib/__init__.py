"""Makes docs/report.html and the README's charts from committed results; the entry is `tools/report`."""
