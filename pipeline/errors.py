"""The error that is the user's to mend: the command line prints it as one line and exits with 2."""


class InputError(ValueError):
    """What the user gave cannot be used; the message names the key or file, its value and the way out."""
