"""The one exception of the library's own."""


class ProbexError(Exception):
    """Something that the user can mend: a file, a setting, a folder.

    The message is one line that names the thing that is wrong and says what was expected. The
    commands print it and exit with code 2; anything else that is raised is a bug of ours.

    Example:
      >>> raise ProbexError("zoo/: no such folder; build one with experiments.build_zoo")
      Traceback (most recent call last):
        ...
      probex_jax.errors.ProbexError: zoo/: no such folder; build one with experiments.build_zoo
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))
