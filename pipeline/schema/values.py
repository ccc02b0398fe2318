"""Kinds of numbers, and what every section of a config is."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
)
from pydantic_core import PydanticCustomError

LARGEST = 2**31 - 1
"""No count, size or seed is larger, so that all that is computed from them fits 64 bits."""


def _number(value: Any) -> Any:
    # pydantic takes true for 1, and YAML takes yes and on for true.
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "input should be a number, not true or false")
    return value


Number = BeforeValidator(_number)


NonNegativeInt = Annotated[int, Number, Field(ge=0, le=LARGEST)]


PositiveInt = Annotated[int, Number, Field(ge=1, le=LARGEST)]


AtLeastTwo = Annotated[int, Number, Field(ge=2, le=LARGEST)]


PositiveFloat = Annotated[FiniteFloat, Number, Field(gt=0)]


Share = Annotated[FiniteFloat, Number, Field(gt=0, lt=1)]


Part = Annotated[FiniteFloat, Number, Field(ge=0, lt=1)]


class Config(BaseModel):
    """Every part of a config: frozen, and a key that nothing reads is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=())
