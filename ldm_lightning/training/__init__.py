"""One training run in steps: check, build, load, prepare, fit, report.

Each step takes what the one before returns, so nothing slow begins before all checks passed.
"""
