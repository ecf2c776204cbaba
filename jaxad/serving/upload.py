"""The images of a request: read within the limits, and held in memory alone."""

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from jaxad.errors import counted
from jaxad.serving.options import Limits, Refusal

_MIB = 2**20
_FIELDS = 8  # of a form beside its files; they are refused, after they are read
_FORM = "send the images as files of a form, as curl -F image=@FILE does"


class Upload(NamedTuple):
    """An image as it came: the name that the client gave it, and its content."""

    name: str
    data: bytes


class _InMemory(MultiPartParser):
    """Reads a form, and keeps its files in memory."""

    spool_max_size = 2**62  # Starlette would write files above one megabyte to the disk
    is_whole = False

    def on_end(self) -> None:
        """Is called behind the last boundary."""
        self.is_whole = True

    def close(self) -> None:
        """Closes all files, also one that was cut off, of which the form says nothing."""
        for file in self._files_to_close_on_error:
            file.close()


async def read(request: Request, limits: Limits) -> list[Upload]:
    """The images in the body of a request.

    Raises:
      Refusal: The body is no form with images, or exceeds a limit, or does not come in time.
      starlette.requests.ClientDisconnect: The client has left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refusal(415, f"the content type is {kind or 'not given'}, not multipart/form-data; {_FORM}")
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8")
    if charset.lower() not in (b"utf-8", b"utf8"):
        raise Refusal(
            400, f"the form has the charset {charset.decode('latin-1')!r}; send the names of its files in utf-8"
        )
    if request.headers.get("content-length", "0").isdecimal():
        _check_size(int(request.headers.get("content-length", "0")), limits)
    parser = _InMemory(request.headers, _limited(request, limits), max_files=limits.files, max_fields=_FIELDS)
    try:
        async with asyncio.timeout(limits.read):
            form = await parser.parse()
        if not parser.is_whole:
            raise Refusal(400, f"the form ends too early; {_FORM}")
        return await _files(form)
    except TimeoutError:
        sentence = f"the request did not come within {limits.read:g} seconds; send it faster or in smaller parts"
        raise Refusal(408, sentence, connection="close") from None
    except MultiPartException as error:
        raise Refusal(400, f"the form cannot be read ({error.message.rstrip('.')}); {_FORM}") from None
    finally:
        parser.close()


async def _files(form: FormData) -> list[Upload]:
    """The files of a form, which holds nothing else."""
    files = [held for _, held in form.multi_items() if isinstance(held, UploadFile) and held.filename]
    if fields := [name for name, held in form.multi_items() if not isinstance(held, UploadFile)]:
        raise Refusal(400, f"the form has the field {fields[0]!r}, which is no file; options belong in the query")
    if not files:
        raise Refusal(400, f"the form holds no file; {_FORM}")
    return [Upload(held.filename or "", await held.read()) for held in files]


async def _limited(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body in parts, as long as they are not too many."""
    size = 0
    async for part in request.stream():
        size += len(part)
        _check_size(size, limits)
        yield part


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.upload:
        raise Refusal(
            413,
            f"the upload has more than {counted(limits.upload // _MIB, 'MiB').removesuffix('s')}, the limit of this "
            "server (--max-upload-mib); send fewer or smaller images",
        )
