"""What tests read from the results of a command: the rows of its CSV files, and the last line of its errors."""

import csv


def csv_rows(path):
    """Return the rows of a CSV file, column -> text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def last_error(capsys):
    """Return the last line on standard error. Empty without one."""
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1] if lines else ""
