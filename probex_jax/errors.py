"""The library's only exception."""


class ProbexError(Exception):
    """A mistake that the user can mend, in a file, a setting or a folder.

    The message is one line that names what is wrong and says what was expected. The commands print
    it and exit with code 2; any other exception is a bug of ours.

    Example:
      >>> raise ProbexError("zoo/: no such folder; build one with probex build_zoo")
      Traceback (most recent call last):
        ...
      probex_jax.errors.ProbexError: zoo/: no such folder; build one with probex build_zoo
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))
