"""The one exception for a user's mistake: its text is the line that the user reads."""


class UserError(ValueError):
    """A flag, file, checkpoint or data row that cannot be used: what it is, and what to do."""
