"""The error of a person's input: one line that says what is wrong, where, its value, and what to do."""


class SubmitError(ValueError):
    """What was asked cannot be submitted, followed or stopped; nothing was started."""
