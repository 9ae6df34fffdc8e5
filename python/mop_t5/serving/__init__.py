"""A server of summaries over HTTP: `mop-t5 serve`."""
