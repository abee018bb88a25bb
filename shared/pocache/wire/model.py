"""The base of everything that travels on the bus: frozen, strict, nothing extra, one versioned kind per model.

A field may be an int, str, bytes, bool, None, another wire model, or a tuple of those. Floats are refused by the
codec, so no amount, time or score is ever rounded on the way. An enum field is ``Annotated[E, WIRE_ENUM]``, because
strict validation would otherwise ask for the enum's own instance, which bytes cannot carry.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Final

from pydantic import BaseModel, ConfigDict
from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler


class WireModel(BaseModel):
    """A message body. ``kind`` names the model and its version, for example ``commitment.v1``."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        validate_default=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    kind: ClassVar[str] = ""


class _WireEnum:
    """Reads an enum from exactly its value: ``True`` and ``"1"`` are not the member whose value is 1."""

    def __get_pydantic_core_schema__(self, source: type[Enum], _handler: GetCoreSchemaHandler) -> CoreSchema:
        by_value = {(type(member.value), member.value): member for member in source}

        def read(value: object) -> Enum:
            if isinstance(value, source):
                return value
            member = by_value.get((type(value), value)) if isinstance(value, (str, int)) else None
            if member is None:
                raise ValueError(f"not a {source.__name__}")
            return member

        return core_schema.no_info_plain_validator_function(read)


WIRE_ENUM: Final = _WireEnum()
"""Marks an enum field: read from its value or from the member itself, nothing else."""
