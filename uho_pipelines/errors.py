"""The base of every error of ours that is meant for a person to read."""


class UhoError(Exception):
    """An error that we know: its message says what happened, to which chunk, and what to do.

    The command line prints the message alone; everything else is a defect and shows its traceback.
    """
