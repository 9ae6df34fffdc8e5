"""The laboratory of the three papers: suites, tables, comparisons, analyses, report and demo."""
