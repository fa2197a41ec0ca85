"""Drop-in initialization of PyTorch vision models by graph hypernetworks.

    import ghn_init
    model = ghn_init.apply(model, method="ghn3-orth")

`__init__.pyi` lists what is public, here and in each package. A name is loaded when it is first
used, so that importing the package is free.
"""

import lazy_loader

from ghn_init import timm_hook
from ghn_init.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

timm_hook.enable_or_warn()
