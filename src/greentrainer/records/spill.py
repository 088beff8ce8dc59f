"""Bytes that lie in a file without a name, gone with the process however it ends."""

import errno
import os
import tempfile
import weakref
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Spill:
    """A file of bytes that grows; any part of it is read again, in processes forked off too.

    Raises ValueError, in one line, where there is no room to write.
    """

    def __init__(self) -> None:
        self.file: Any = tempfile.TemporaryFile()  # noqa: SIM115 (closed when nobody has it)
        weakref.finalize(self, self.file.close)
        self.size = 0
        self._flushed = True

    def add(self, content: Any) -> None:
        """Write further bytes (anything that has them)."""
        try:
            self.size += self.file.write(content)
        except OSError as error:
            raise self._refusal(error) from error
        self._flushed = False

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`."""
        self.flush()
        if hasattr(os, "pread"):
            return os.pread(self.file.fileno(), end - start, start)
        self.file.seek(start)
        found: bytes = self.file.read(end - start)
        self.file.seek(0, os.SEEK_END)
        return found

    def flush(self) -> None:
        """Have everything in the file itself."""
        if not self._flushed:
            try:
                self.file.flush()
            except OSError as error:
                raise self._refusal(error) from error
            self._flushed = True

    def _refusal(self, error: OSError) -> BaseException:
        if error.errno not in _FULL:
            return error
        return ValueError(
            f"no room in {tempfile.gettempdir()} for what is read: make some, or set TMPDIR to a "
            "folder with more"
        )
