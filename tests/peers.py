"""Imports the libraries that the tests compare with.

Our folder `kernels` has the name of a package on PyPI which transformers uses if its metadata is
installed. Where both are present transformers would import ours in its place, so that package is
hidden while transformers looks for it; it asks once and remembers the answer. The programs of this
project never import transformers and are not concerned.
"""

import importlib.metadata

_version = importlib.metadata.version


def _without_kernels(name: str) -> str:
    if name == "kernels":
        raise importlib.metadata.PackageNotFoundError(name)
    return _version(name)


importlib.metadata.version = _without_kernels
try:
    import transformers
    from transformers.utils.import_utils import is_kernels_available

    assert not is_kernels_available()
finally:
    importlib.metadata.version = _version

__all__ = ["transformers"]
