"""Run folders as one page to decide from: ``report.html``, ``results.csv``, figures."""
