"""The parameters of a flow, generated from ``PyramidParams``: one text, one default, one bound."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, WithJsonSchema
from pydantic.fields import FieldInfo

F = TypeVar("F", bound=Callable[..., Any])


def takes(model: type[BaseModel]) -> Callable[[F], F]:
    """Give a function of ``**parameters`` the signature and help of a model's fields.

    Prefect makes the form of a flow from its signature, and the help of each parameter from the
    ``Args:`` of its docstring; constraints have to stand in ``Annotated``.
    """

    def decorate(function: F) -> F:
        fields = model.model_fields
        parameters = [_parameter(name, field) for name, field in fields.items()]
        returns = inspect.signature(function).return_annotation
        signature = inspect.Signature(parameters, return_annotation=returns)
        function.__signature__ = signature  # type: ignore[attr-defined] # what inspect looks for
        function.__annotations__ = {p.name: p.annotation for p in parameters}
        described = [f"    {name}: {field.description}" for name, field in fields.items()]
        function.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Args:", *described])
        return function

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    annotation: Any = field.annotation
    for constraint in field.metadata:
        annotation = Annotated[annotation, constraint]
    default = inspect.Parameter.empty if field.is_required() else field.default
    if set(get_args(field.annotation)) == {str, int}:
        # Two tabs again; a size can be typed as text, numbers too.
        annotation = Annotated[annotation, WithJsonSchema({"type": "string"})]
    if type(None) in get_args(field.annotation):
        # The form would show two tabs, one of them named None; a box that may stay blank reads
        # better. The model takes both blanks for None.
        blank = {"string": "", "integer": 0}
        choices = TypeAdapter(annotation).json_schema()["anyOf"]
        (shown,) = [choice for choice in choices if choice["type"] in blank]
        default = blank[shown["type"]]
        shown = {**shown, "minimum": 0} if default == 0 else shown
        annotation = Annotated[annotation, WithJsonSchema(shown)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
