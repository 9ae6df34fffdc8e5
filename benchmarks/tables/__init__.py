"""The comparison tables of docs/comparison.md: what libraries compute, measured on tiny models on a CPU.

`make tables` installs the pinned packages, runs every script, writes results/*.json and renders the pages. A rerun
shows in `git diff` what has changed. `python -m benchmarks.tables.render` renders the committed results alone.
"""
