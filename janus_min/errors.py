"""The one exception for a user's mistake: its text is the line that the user reads."""


class UserError(ValueError):
    """A flag, file, checkpoint or data row that cannot be used: what it is, and what to do."""

    status = 2  # of the program that it ends
    shared: bool | None = None  # whether all ranks raise it; None: only before they have met


def require(valid: bool, settings: object, name: str, needed: str) -> None:
    """Raises UserError that names a field of `settings` by its flag, unless it is valid."""
    if not valid:
        value = getattr(settings, name)
        raise UserError(f"--{name.replace('_', '-')} is {value}, must be {needed}")
