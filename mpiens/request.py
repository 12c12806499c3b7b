"""What the user asked for on the command line; every rank knows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpiens.shard import Shard, default_file
from mpiens.spec import Spec


@dataclass(frozen=True)
class Request:
    """What the user asked for on the command line."""

    spec: Path
    output: Path | None = None
    fresh: bool = False
    retry_failed: bool = False
    accept_model_change: bool = False
    shard: Shard | None = None
    text: str | None = None  # a spec in JSON that stands for that in the file
    fit: Spec | None = None  # of the calibration that it confirms

    @property
    def file(self) -> Path:
        """The result file."""
        return self.output or default_file(self.spec, self.shard)
