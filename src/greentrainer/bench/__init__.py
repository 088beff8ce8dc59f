"""Comparisons: many runs told in one file, a JSON for each, and tables drawn from these alone.

spec -> variants (rows of the table) -> trials (one run each, in a process of its own)
     -> `runs/*.json` -> summary -> `results.json`, tables, plots
"""
