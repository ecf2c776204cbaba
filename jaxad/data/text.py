"""Text files and tables that tell of images, with one clear sentence for every file that cannot be used."""

import csv
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


def read_table(path: pathlib.Path, columns: Sequence[str], remedy: str) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, by column; a row that ends early has None in the columns that it lacks.

    Raises:
      UserError: As `read_text`, or the file lacks one of `columns`.
    """

    def read(file: Any) -> tuple[Sequence[str], list[dict[str, str]]]:
        reader = csv.DictReader(file)
        return reader.fieldnames or (), list(reader)

    header, rows = read_text(path, read, remedy)
    if missing := next((column for column in columns if column not in header), None):
        raise UserError(f"'{path}' has no column '{missing}'; {remedy}", about=path)
    return rows
