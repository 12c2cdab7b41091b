"""A dataclass becomes the flags of a program; a user's mistake becomes one line and status 2."""

import argparse
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields

from janus_min.errors import UserError

INTERRUPTED = 130  # what a shell reports for Ctrl-C


class Parser(argparse.ArgumentParser):
    """argparse without abbreviated flags, whose complaints are one line like all others."""

    def __init__(self, description: str):
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message} (see --help)")


def add_fields(parser: argparse.ArgumentParser, dataclass_type: type) -> None:
    """One flag for each field: its type, its default, and the comment behind it as the help.

    A flag that is not given leaves no trace in the namespace (`given_fields`).
    """
    hints = typing.get_type_hints(dataclass_type)
    comments = dict(re.findall(r"^ +(\w+): .*?  # (.*)$", inspect.getsource(dataclass_type), re.M))
    for field in fields(dataclass_type):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):  # X | None
            kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
        flag, text = "--" + field.name.replace("_", "-"), comments[field.name].replace("%", "%%")
        if kind is bool:
            action = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
            continue
        if field.default not in (None, MISSING):
            text += f" ({field.default})"
        metavar = {"Path": "PATH", "int": "N", "float": "X"}.get(kind.__name__, "TEXT")
        parser.add_argument(flag, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text)


def given_fields(arguments: argparse.Namespace, dataclass_type: type) -> dict:
    """The values of those fields that the user gave."""
    names = [field.name for field in fields(dataclass_type)]
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def at_least(minimum: int, settings: object, *names: str) -> None:
    """Raises UserError if one of the named fields is a number below `minimum`."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < minimum:
            raise UserError(f"--{name.replace('_', '-')} is {value}, must be at least {minimum}")


def run(main: Callable[[], None]) -> typing.NoReturn:
    """Runs a program and exits: 0 when its work is done, 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)
