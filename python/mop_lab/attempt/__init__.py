"""The experiments of the ATTEMPT paper."""
