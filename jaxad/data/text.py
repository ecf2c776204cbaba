"""Text files and tables that tell of images, with one clear sentence for every file that cannot be used."""

import csv
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from jaxad.errors import UserError


def read_text(path: pathlib.Path, read: Callable[[Any], Any], remedy: str) -> Any:
    """What `read` makes of an open text file in UTF-8; `remedy` says what to do about one that cannot be used.

    Raises:
      UserError: The file is missing, a folder, unreadable or no text.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return read(file)
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist; {remedy}", about=path) from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a folder where a text file should be; {remedy}", about=path) from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); check its permissions", about=path) from error
    except (UnicodeDecodeError, csv.Error):
        raise UserError(f"'{path}' is damaged or no text file; {remedy}", about=path) from None


Rows = list[tuple[int, dict[str | None, Any]]]


def read_table(path: pathlib.Path, columns: Sequence[str], remedy: str) -> Rows:
    """The rows of a CSV file with a header, by column, each behind its number.

    They are numbered as a spreadsheet does, where the header is row 1 and empty rows count. A row that ends early has
    None in the columns that it lacks, and one that is too long has what is left behind None.

    Raises:
      UserError: As `read_text`, or the file lacks one of `columns`.
    """
    header, *rows = read_text(path, lambda file: list(csv.reader(file)), remedy) or [[]]
    check_columns(path, header, columns, remedy)
    found = []
    for number, values in enumerate(rows, 2):
        if values:
            more = {None: values[len(header) :]} if len(values) > len(header) else {}
            found.append((number, dict(itertools.zip_longest(header, values[: len(header)])) | more))
    return found


def check_columns(path: pathlib.Path, header: Sequence[str], columns: Sequence[str], remedy: str) -> None:
    """Raises a UserError where a table's header lacks one of the columns; `remedy` says what to do about it."""
    if missing := next((column for column in columns if column not in header), None):
        raise UserError(f"'{path}' has no column '{missing}'; {remedy}", about=path)
