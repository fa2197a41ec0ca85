"""Pictures and diagnostics: graphs, predicted parameters and initializations.

    from ghn_init.analysis import diagnose
    result = diagnose(model, ["rand", "ghn3-orth"])
    print(result.table())
    result.save("diagnosis.png")

Every function returns a result with `.table()`, `.plot()`, `.to_json()` and `.save(path)`.
Pictures, Kendall's tau and the Hungarian matching need the extra `[plot]`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
