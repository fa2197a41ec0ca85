"""Images of a folder or of a torchvision data set, in memory, and splits of them.

They need the extra `[train]`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
