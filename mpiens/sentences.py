"""What a comparison says, in a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mpiens.spec import Bands
from mpiens.table import Entry, Line
from mpiens.wording import enclose, name_summary, write_share


def tell_verdicts(entries: list[Entry], wanted: Bands) -> Iterator[str]:
    """Yield a sentence for each summary of each scenario that is compared."""
    for entry in entries:
        for line in entry.lines:
            if line.verdict is not None:
                yield tell_verdict(entry, line, wanted)


def tell_verdict(entry: Entry, line: Line, wanted: Bands) -> str:
    """Say whether a scenario differs from its baseline, by how much, and how surely.

    What stands in brackets encloses the true value as surely as ``wanted`` says.
    """
    verdict = line.verdict
    if verdict is None:
        raise ValueError(f"{entry.name} is compared with nothing")
    what = name_summary(line.output, line.kind)
    low, high = verdict.mean_interval
    if math.isnan(low):
        return f"{entry.name}: too few replicates to compare {what}."
    if low <= 0 <= high:
        return (
            f"{entry.name}: whether it changes {what}, against {entry.baseline} is not "
            f"known; the mean difference is "
            f"{enclose(verdict.mean, verdict.mean_interval)}."
        )
    timed, rises = line.kind == "peak_time", low > 0
    verbs = ("brings forward", "delays") if timed else ("lowers", "raises")
    sizes = _measure(verdict.mean, verdict.mean_interval)
    text = f"{entry.name} {verbs[rises]} {what}, against {entry.baseline} by "
    text += f"{enclose(*sizes)} on average"
    if not timed and all(map(math.isfinite, verdict.averted_interval)):
        shares = _measure(verdict.averted, verdict.averted_interval)
        text += f", which is {enclose(*shares, write_share)}"
    words = ("earlier", "later") if timed else ("lower", "higher")
    own = verdict.better if (wanted.better == "higher") == rises else 1 - verdict.better
    twins = not math.isnan(verdict.reduction)
    whose = f"of {verdict.count:,} pairs of twins" if twins else "of all pairs of runs"
    return f"{text}; {whose}, {write_share(own)} are {words[rises]}."


def _measure(
    value: float, interval: tuple[float, float]
) -> tuple[float, tuple[float, float]]:
    """Return a number and its interval, which has no zero in it, without the sign."""
    least, most = sorted(map(abs, interval))
    return abs(value), (least, most)
