"""MOP: a mixture of low-rank PHM experts that generates prefixes."""
