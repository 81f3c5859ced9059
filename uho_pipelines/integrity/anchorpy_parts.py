"""The parts of anchorpy that decode events, without the rest of it.

What belongs here: the import alone. `import anchorpy` loads an RPC client, an HTTP client, SPL token and, where it is
installed, pytest: 1 s of CPU in every run, a third of what a run of a small chunk costs. Its coder takes 0.1 s.
"""

import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def _package_without_contents(name: str) -> Generator[None]:
    """Have submodules of `name` imported without its `__init__`; whoever imports the package later gets it whole."""
    specification = None if name in sys.modules else importlib.util.find_spec(name)
    if specification is None:
        yield  # it is loaded already, or it is not there and its import says so
        return
    package = ModuleType(name)
    package.__path__ = list(specification.submodule_search_locations or ())
    sys.modules[name] = package
    try:
        yield
    finally:
        del sys.modules[name]


with _package_without_contents("anchorpy"):
    from anchorpy.coder.event import EventCoder
    from anchorpy.idl_adapter import (
        EnumFieldsNamed,
        EnumFieldsTuple,
        Idl,
        IdlEnumVariant,
        IdlEvent,
        IdlTypeArray,
        IdlTypeDefined,
        IdlTypeDefinition,
        IdlTypeDefinitionTyAlias,
        IdlTypeDefinitionTyEnum,
        IdlTypeDefinitionTyStruct,
        IdlTypeOption,
        IdlTypeSimple,
        IdlTypeVec,
    )

__all__ = [
    "EnumFieldsNamed",
    "EnumFieldsTuple",
    "EventCoder",
    "Idl",
    "IdlEnumVariant",
    "IdlEvent",
    "IdlTypeArray",
    "IdlTypeDefined",
    "IdlTypeDefinition",
    "IdlTypeDefinitionTyAlias",
    "IdlTypeDefinitionTyEnum",
    "IdlTypeDefinitionTyStruct",
    "IdlTypeOption",
    "IdlTypeSimple",
    "IdlTypeVec",
]
