"""Shapes of values that a model or a person gives: Python's types as JSON Schema, and strict reading by them."""

from .fields import Field as Field
from .json_schema import read_by_schema as read_by_schema
from .reading import Reader as Reader
from .reading import fields_reader as fields_reader
from .schema import object_schema as object_schema
from .schema import schema_of as schema_of
from .writing import to_json as to_json
