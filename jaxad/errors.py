"""Errors that are told to the user as one sentence, and the wrapper through which every command runs."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in the user's input, told in one sentence: what is wrong, where, and what to do."""


def run(main: Callable[[], None]) -> None:
    """Runs a command: a `UserError` is printed without a traceback and exits with status 2, Ctrl-C with 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
