"""`timm.create_model(..., pretrained_cfg="ghn3")`.

`import ghn_init` is enough, whichever of the two is imported first. The hook stands in front of
`model_entrypoint` where `create_model` looks it up, so that a `create_model` that was imported
before has it too, and so that every other `pretrained_cfg` goes through untouched. timm itself is
not imported for it: until somebody imports timm, an import hook waits.

    timm.create_model("resnet50", pretrained_cfg="ghn3")            # and ghn3-orth, ghn2, ghn2-orth
    timm.create_model("resnet50", pretrained_cfg="ghn3:ghn3tm8")    # another checkpoint
    timm.create_model("resnet50", pretrained_cfg="ghn3:noise=0")    # settings of the method
    timm.create_model("resnet50.ghn3-orth", num_classes=10)         # as a tag

Where no size is to be guessed, `example_inputs=` (as in `trace`) is one more argument of the call.
"""

from __future__ import annotations

import functools
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ghn_init.errors import GHNInitError

if TYPE_CHECKING:
    from importlib.abc import Loader

_FACTORY = "timm.models._factory"


def enable() -> None:
    """Switch the hook on (`import ghn_init` does it, and warns instead of raising).

    Raises:
        GHNInitError: the timm that is imported is not built as the hook expects.
    """
    factory = sys.modules.get(_FACTORY)
    if factory is not None:
        _attach(factory)
    elif not any(isinstance(finder, _Waiter) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiter())


def enable_or_warn() -> None:
    """As `enable`, for the moment of an import, which should not fail for the hook's sake."""
    try:
        enable()
    except GHNInitError as error:
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)


def disable() -> None:
    """Switch the hook off: timm is again exactly as without us."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Waiter)]
    factory = sys.modules.get(_FACTORY)
    original = getattr(getattr(factory, "model_entrypoint", None), "_ghn_init_original", None)
    if factory is not None and original is not None:
        factory.model_entrypoint = original  # type: ignore[attr-defined]


def is_enabled() -> bool:
    """Whether the hook is on, or will be as soon as timm is imported."""
    factory = sys.modules.get(_FACTORY)
    if factory is None:
        return any(isinstance(finder, _Waiter) for finder in sys.meta_path)
    return hasattr(getattr(factory, "model_entrypoint", None), "_ghn_init_original")


def _attach(factory: ModuleType) -> None:
    original = getattr(factory, "model_entrypoint", None)
    create_model = getattr(factory, "create_model", None)
    used = getattr(getattr(create_model, "__code__", None), "co_names", ())
    if original is None or "model_entrypoint" not in used:
        raise GHNInitError(
            "this timm does not build models through timm.models._factory.model_entrypoint, which "
            'pretrained_cfg="ghn3" relies on and which is therefore not available: use '
            "ghn_init.apply(model), or install another timm."
        )
    if hasattr(original, "_ghn_init_original"):
        return

    factory.model_entrypoint = _in_front_of(original)  # type: ignore[attr-defined]


def _in_front_of(original: Callable[..., Any]) -> Callable[..., Any]:
    """timm's `model_entrypoint` with our entry points; pickle and inspect see timm's.

    It carries the name under which it can be found, `timm.models._factory.model_entrypoint`, so
    that it is pickled by reference and loads where ghn_init is not installed. Its code carries
    timm's file and line, so that tools which ask where it is from lead to timm's source.
    """

    def model_entrypoint(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        return _with_ghn(original(*args, **kwargs))

    import inspect  # here, as the import takes long for `ghn-init --help`

    code = getattr(inspect.unwrap(original), "__code__", None)
    if code is not None:
        model_entrypoint.__code__ = model_entrypoint.__code__.replace(
            co_filename=code.co_filename, co_firstlineno=code.co_firstlineno
        )
    functools.update_wrapper(model_entrypoint, original)
    model_entrypoint.__module__ = _FACTORY
    model_entrypoint.__qualname__ = "model_entrypoint"
    model_entrypoint._ghn_init_original = original  # type: ignore[attr-defined]
    return model_entrypoint


def _with_ghn(build: Callable[..., Any]) -> Callable[..., Any]:
    """A model's entry point that understands our `pretrained_cfg`."""

    @functools.wraps(build)
    def entrypoint(*args: Any, **kwargs: Any) -> Any:
        request = _request(kwargs.get("pretrained_cfg"))
        if request is None:
            return build(*args, **kwargs)
        example_inputs = kwargs.pop("example_inputs", None)
        # The model of the default tag, with its metadata, but without its weights.
        model = build(*args, **{**kwargs, "pretrained": False, "pretrained_cfg": None})
        import logging

        from ghn_init.api import apply

        method, checkpoint = request
        _, report = apply(
            model, method, ghn=checkpoint, example_inputs=example_inputs, return_report=True
        )
        logging.getLogger("ghn_init").info("%s", report)
        return model

    return entrypoint


def _request(pretrained_cfg: object) -> tuple[str, str | None] | None:
    """Method and checkpoint that a `pretrained_cfg` asks for; None if it is not for us."""
    if not isinstance(pretrained_cfg, str):
        return None
    from ghn_init.methods.registry import METHODS
    from ghn_init.methods.variants import parse_method

    name = re.split("[:+]", pretrained_cfg, maxsplit=1)[0]
    if name not in METHODS:
        return None
    method, _, checkpoint = pretrained_cfg.partition(":")
    if checkpoint.partition("=")[0] in METHODS[name].settings:  # no checkpoint, but settings
        method, checkpoint = pretrained_cfg, ""
    variant = parse_method(method)
    if variant.needs:
        needs = " and ".join(variant.needs)
        raise GHNInitError(
            f"method {method!r} needs {needs}, which timm.create_model cannot be given: create "
            f"the model without it, and call ghn_init.apply(model, {method!r}, "
            f"{', '.join(f'{name}=...' for name in variant.needs)})."
        )
    return method, checkpoint or None


class _Waiter:
    """Attaches the hook to timm's factory right after it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _FACTORY:
            return None
        others = [finder for finder in sys.meta_path if not isinstance(finder, _Waiter)]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _AttachingLoader(spec.loader)  # type: ignore[assignment]
        return spec


class _AttachingLoader:
    """A module's own loader, and then the hook; it leaves the module with its own loader."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        """What the module's own loader offers beside loading, such as `get_code`."""
        return getattr(self.__dict__["_loader"], name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Waiter)]
        enable_or_warn()
