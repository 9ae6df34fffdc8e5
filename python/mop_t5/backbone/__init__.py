"""Load, build, describe and check frozen T5 backbones and their tokenizers.

The version of transformers is checked here, so that an old release fails with a message before any other import.
"""

import transformers
from packaging.version import Version

_MINIMUM_TRANSFORMERS = "5.15"


def require_transformers(installed: str = transformers.__version__) -> None:
    """Check that transformers has a T5 that runs on the attention interface.

    Up to 5.14 T5Attention computes attention inline, without keyword arguments, so no prefix can enter.

    Args:
        installed: Version of transformers.

    Raises:
        ImportError: `installed` is too old.
    """
    if Version(installed).release < Version(_MINIMUM_TRANSFORMERS).release:
        raise ImportError(
            f"mop_t5 needs transformers >= {_MINIMUM_TRANSFORMERS}, the first release whose T5 uses the attention "
            f"interface; found {installed}. Install it with: pip install 'transformers>={_MINIMUM_TRANSFORMERS},<6'"
        )


require_transformers()
