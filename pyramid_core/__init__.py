"""Exact, bounded, resumable, proven image pyramids: Zarr in, OME-Zarr out.

>>> from pyramid_core import PyramidParams
>>> PyramidParams(source="scan.zarr").method
'mean'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyramid_core.version import VERSION

if TYPE_CHECKING:
    from pyramid_core.build import BuildResult as BuildResult
    from pyramid_core.build import build_pyramid as build_pyramid
    from pyramid_core.params import PyramidParams as PyramidParams
    from pyramid_core.phantom import write_phantom as write_phantom
    from pyramid_core.plan import plan_pyramid as plan_pyramid
    from pyramid_core.preview import render_preview as render_preview
    from pyramid_core.reader import open_image as open_image
    from pyramid_core.sampler import Downsampler as Downsampler
    from pyramid_core.sampler import initialize_test_image as initialize_test_image
    from pyramid_core.verify import Verification as Verification
    from pyramid_core.verify import verify_pyramid as verify_pyramid

__version__ = VERSION

# Each name is imported when it is first used: `pyramid --help` needs neither zarr nor numba.
_HOMES = {
    "BuildResult": "build",
    "build_pyramid": "build",
    "PyramidParams": "params",
    "plan_pyramid": "plan",
    "open_image": "reader",
    "render_preview": "preview",
    "Verification": "verify",
    "verify_pyramid": "verify",
    "write_phantom": "phantom",
    "Downsampler": "sampler",
    "initialize_test_image": "sampler",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"pyramid_core.{_HOMES[name]}"), name)
