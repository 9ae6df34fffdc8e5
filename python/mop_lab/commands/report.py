"""mop-t5 report."""

from pathlib import Path

from mop_t5.cli import Words
from mop_t5.files import check_writable, failure_in_a_sentence, replace_file, write_beside

from mop_lab.report import report_page


def report(
    runs: Words,
    output: str = "report.html",
    title: str | None = None,
    split: str = "test",
    corpus: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write one HTML page of finished runs: scores, tables, plots, configurations, and all predictions side by side.

    The page is one file, needs no network and can be mailed. Predictions can be searched by words, scenario and system.
    Each search has its own address, such as report.html#q=taxi. The page names unfinished runs and leaves them out. The
    same folders give the same page, byte for byte.

      mop-t5 report runs/tables
      mop-t5 report runs/tables runs/analyses --output runs/report.html --title 'All systems on our calls'

    Args:
        runs: folders with evaluated runs, such as the OUTPUT of `mop-t5 table` or a RUN, and folders of analyses.
            Their tables and plots are shown, too.
        output: file of the page. An existing page is kept as NAME.1.html unless overwrite is given.
        title: heading of the page. The default is the names of the folders.
        split: "test" or "valid": the evaluations to show.
        corpus: folder with train.jsonl. It tells values from wording. The default is the corpus that each run names.
            Values are not marked if it does not exist.
        overwrite: replace an existing page.
    """
    if split not in ("test", "valid"):
        raise ValueError(f"split must be 'test' or 'valid', got {split!r}.")
    path, earlier = Path(output), None
    if path.is_dir():
        raise IsADirectoryError(f"{output} is a folder. Name a file in it, such as {path / 'report.html'}.")
    check_writable(path.parent)
    page = report_page(runs, split, title, corpus).encode()
    with failure_in_a_sentence(path.name, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            replace_file(path, page)
        else:
            earlier = write_beside(path, page)
    print(f"Written to {path}: {len(page) / 1e6:.1f} MB.")
    if earlier is not None:
        print(f"The earlier one is now {earlier.name}.")
