"""Forms of Unicode in which references and summaries are compared.

The tokenizers of mT5 and umT5 write "," where a reference has the full-width comma of Chinese, so even a perfect model
stays below 100. In the form "nfkc" both sides have the same characters.
"""

import unicodedata

FORMS = ("none", "nfkc")


def normalised(text: str, form: str) -> str:
    """Return a text in a form out of FORMS: as it is, or with Unicode's compatibility characters replaced (NFKC)."""
    return text if form == "none" else unicodedata.normalize("NFKC", text)
