"""Load, build, describe and check frozen T5 backbones and their tokenizers.

The version of transformers is checked here, so that an old release fails with a message before any other import. Up to
5.14 T5Attention computes attention inline, without keyword arguments, so no prefix can enter.
"""

import transformers
from packaging.version import Version

if Version(transformers.__version__).release < (5, 15):
    raise ImportError(
        "mop_t5 needs transformers >= 5.15, the first release whose T5 uses the attention interface; found "
        f"{transformers.__version__}. Install it with: pip install 'transformers>=5.15,<6'"
    )
