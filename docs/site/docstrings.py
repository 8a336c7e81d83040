"""What the generator of the API's pages does not see by itself in our docstrings and classes."""

import re

import griffe


class Docstrings(griffe.Extension):
    """One `Example:` becomes its section of examples; a Linen module's fields its arguments."""

    def on_object(self, *, obj, **kwargs) -> None:
        """Called for every object that is read."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = text

    def on_class(self, *, cls, **kwargs) -> None:
        """Called for every class that is read."""
        if not any(str(base).endswith("nn.Module") for base in cls.bases):
            return
        keyword = griffe.ParameterKind.positional_or_keyword
        fields = [griffe.Parameter("self", kind=keyword)]
        for name, field in cls.members.items():
            if field.is_attribute and field.annotation is not None:
                parameter = griffe.Parameter(
                    name, annotation=field.annotation, kind=keyword, default=field.value
                )
                fields.append(parameter)
        init = griffe.Function("__init__", parameters=griffe.Parameters(*fields))
        cls.set_member("__init__", init)
