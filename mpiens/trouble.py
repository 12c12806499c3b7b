"""How a run ends: exit codes, and what the world does to it."""

from __future__ import annotations

import errno
import os
import re

from mpiens.deadline import Stopped

COMPLETE, WRONG_INPUT, SOME_FAILED, GIVEN_UP, STOPPED_EARLY = 0, 2, 3, 4, 75


class Trouble(Exception):  # noqa: N818  (the world's, nobody's error)
    """The file system has failed us, or time is over; what is finished is kept."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, code)
        self.text = text
        self.code = code

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, error: OSError) -> Trouble:
        """Say what has failed and what to do: wait for it, or choose another place."""
        number = error.errno
        if number is None and (told := re.search(r"errno = (\d+)", str(error))):
            number = int(told[1])  # HDF5 tells it within a dump of its own
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        passing = number in (None, errno.EIO, *full)
        what = str(error) if number is None else os.strerror(number)
        where = f"{error.filename}: " if error.filename else "the result file: "
        way = (
            "what is finished is kept; mend it, and run the same command again"
            if passing
            else "choose another place by -o, or mend this one"
        )
        return cls(f"{where}{what}; {way}", STOPPED_EARLY if passing else WRONG_INPUT)

    @classmethod
    def stopped(cls, news: Stopped) -> Trouble:
        """Say that long work beside the tasks was given up."""
        way = "what is finished is kept; run the same command again to go on"
        return cls(f"stopped early ({news}): {way}", STOPPED_EARLY)
