"""The errors that are told as one line: what is the user's to mend (exit code 2), and a run that cannot go on (1)."""


class InputError(ValueError):
    """What the user gave cannot be used; the message names the key or file, its value and the way out."""


class RunFailed(RuntimeError):
    """A run that would fail again however often it is started; the message says where it was and why."""
