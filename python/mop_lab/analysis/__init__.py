"""Analyse finished runs: scores over seeds, values kept and lost, generated prefixes, single cases."""
