#!/usr/bin/env bash
# rouge 1.0.1, rouge-chinese 1.0.3.
# Expected: rouge-chinese brings the module rouge_chinese, and `import rouge` stays the package rouge. Seen: its wheel also
# holds a module rouge, other than that of the package, and pip writes it over the package's files without a warning. pip
# check finds nothing, and the version stays. The same call gives another ROUGE-2, because "." is counted now, and another
# ROUGE-L, because it is the length of one common sequence now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip --disable-pip-version-check "$@"; }
score() {
    "$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from rouge import Rouge

found = Rouge().get_scores("发 烧 3 8 . 5 度 咳 嗽", "咳 嗽 发 烧 3 8 . 5 度")[0]
print("rouge", version("rouge"), *(f"{name} {100 * found[name]['f']:.2f}" for name in ("rouge-1", "rouge-2", "rouge-l")))
PYTHON
}
pip install --quiet rouge==1.0.1
before=$(score)
pip install --quiet rouge-chinese==1.0.3
after=$(score)
pip check
printf 'before: %s\nafter:  %s\n' "$before" "$after"
[ "$before" = "rouge 1.0.1 rouge-1 100.00 rouge-2 85.71 rouge-l 100.00" ]
[ "$after" = "rouge 1.0.1 rouge-1 100.00 rouge-2 87.50 rouge-l 77.78" ]
