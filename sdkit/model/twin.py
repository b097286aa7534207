"""A second set of module objects around one set of weights, so that hooks can be put on it and nobody else is heard."""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def twin_of(module: Any, known: dict[int, Any] | None = None) -> Any:
    """A module that computes with the same weights and buffers as another, and whose hooks are its own.

    What has been put on the module before, such as the hooks by which accelerate moves its weights about, acts on the
    twin likewise.
    """
    known = {} if known is None else known
    if id(module) in known:
        return known[id(module)]
    twin = known[id(module)] = module.__class__.__new__(module.__class__)
    twin.__dict__.update(module.__dict__)
    twin.__dict__.update({name: module.__dict__[name].copy() for name in _HOOKS})
    twin.__dict__.pop("_compiled_call_impl", None)  # compiled code would not call the hooks
    for name, value in module.__dict__.items():  # methods that were put on the object itself, as accelerate does
        if isinstance(value, MethodType) and value.__self__ is module:
            twin.__dict__[name] = MethodType(value.__func__, twin)
        elif isinstance(value, partial) and value.args[:1] == (module,):
            twin.__dict__[name] = partial(value.func, twin, *value.args[1:], **value.keywords)
    children = module.__dict__["_modules"].items()
    twin.__dict__["_modules"] = {name: child if child is None else twin_of(child, known) for name, child in children}
    return twin


def is_compiled(module: Any) -> bool:
    """Whether `torch.compile` has been at a module, as a whole or at a part of it in place."""
    return hasattr(module, "_orig_mod") or any(one._compiled_call_impl is not None for one in module.modules())
