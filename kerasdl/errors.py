"""The one exception that a person is meant to read."""


class UserError(ValueError):
    """A mistake in the input: one line that says what happened, what was expected and how to fix it.

    Command lines print it without a traceback and exit with status 2.
    """
