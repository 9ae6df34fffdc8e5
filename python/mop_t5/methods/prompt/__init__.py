"""Prompt tuning, SPoT and ATTEMPT."""
