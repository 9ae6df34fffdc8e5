"""What finished runs show: scores over seeds, values said and lost, generated prefixes, single cases."""
