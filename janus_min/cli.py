"""A dataclass becomes the flags of a program; a user's mistake becomes one line and status 2."""

import argparse
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields

from janus_min.errors import UserError
from janus_min.interrupt import StoppedError

INTERRUPTED, BROKEN_PIPE = 130, 141  # what a shell reports for programs ended by these signals


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


def add_fields(
    parser: argparse.ArgumentParser, dataclass_type: type, without: tuple[str, ...] = ()
) -> None:
    """One flag for each field: its type, its default, and the comment behind it as the help.

    A flag that is not given leaves no trace in the namespace (`given_fields`).
    """
    hints = typing.get_type_hints(dataclass_type)
    sources = map(inspect.getsource, reversed(dataclass_type.__mro__[:-1]))  # what it inherits, too
    comments = dict(re.findall(r"^ +(\w+): .*?  # (.*)$", "\n".join(sources), re.M))
    for field in (field for field in fields(dataclass_type) if field.name not in without):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):  # X | None
            kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
        flag, text = "--" + field.name.replace("_", "-"), comments[field.name].replace("%", "%%")
        if kind is bool:
            text += " (on)" if field.default else ""
            action = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
            continue
        if field.default not in (None, MISSING):
            text += f" ({field.default})"
        many = typing.get_origin(kind) is tuple  # tuple[X, ...]: one or more values
        kind = typing.get_args(kind)[0] if many else kind
        parser.add_argument(
            flag,
            type=kind,
            nargs="+" if many else None,
            metavar={"Path": "PATH", "int": "N", "float": "X"}.get(kind.__name__, "TEXT"),
            default=argparse.SUPPRESS,
            help=text,
        )


def given_fields(arguments: argparse.Namespace, dataclass_type: type) -> dict:
    """The values of those fields that the user gave."""
    names = [field.name for field in fields(dataclass_type)]
    values = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def run(main: Callable[[], None]) -> typing.NoReturn:
    """Runs a program and exits: 0 only when its work is done, 2 for what the user can mend."""
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except StoppedError as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(interrupted.status)
    except BrokenPipeError:  # who reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except OSError as error:  # no such folder, no permission, no space left
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
