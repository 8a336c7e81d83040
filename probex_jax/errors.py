"""The library's only exception, and texts of strangers in messages."""


class ProbexError(Exception):
    r"""A mistake that the user can mend, in a file, a setting or a folder.

    The message is one line that names what is wrong and says what was expected; control characters
    in names of files are escaped in it. The commands print it and exit with code 2; any other
    exception is a bug of ours.

    Example:
      >>> raise ProbexError("zoo\x1b/: no such folder; build one with probex build_zoo")
      Traceback (most recent call last):
        ...
      probex_jax.errors.ProbexError: zoo\x1b/: no such folder; build one with probex build_zoo
    """

    def __init__(self, message: str):
        super().__init__(one_line(" ".join(str(message).split())))


def one_line(text: object) -> str:
    r"""A text as terminals, logs and tables may have it.

    Args:
      text: it may hold anything, such as the name of a file that a stranger chose.

    Returns:
      It, with an escape for each character that is not printable: control characters, ends of
      lines, what turns the direction of writing, and unpaired surrogates.

    Example:
      >>> print(one_line("a\x1b[2J\n\u202e\ud800 Größe"))
      a\x1b[2J\n\u202e\ud800 Größe
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
