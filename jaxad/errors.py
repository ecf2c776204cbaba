"""Errors that are told to the user as one sentence, and the wrapper through which every command runs."""

import errno
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in the user's input, told in one sentence: what is wrong, where, and what to do."""


_PLACE = "check its permissions or choose another place"
_SPACE = "free some space and run the same command again"
# What a file system can refuse; other OSErrors are faults of the program and keep their traceback.
_REMEDIES = {
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
    errno.EROFS: _PLACE,
    errno.EEXIST: _PLACE,
    errno.EISDIR: _PLACE,
    errno.ENOTDIR: _PLACE,
    errno.ENAMETOOLONG: _PLACE,
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
}


def run(main: Callable[[], None]) -> None:
    """Runs a command: a `UserError` is printed without a traceback and exits with status 2, Ctrl-C with 130.

    What the file system refuses (no permission, no space left, ...) is told in the same way.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; {_REMEDIES[error.errno]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
