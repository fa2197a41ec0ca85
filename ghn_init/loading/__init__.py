"""From the name or path of a checkpoint to a hypernetwork, without running what a file says."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
