"""What may be typed: a parser for each command, and what completes words."""

from __future__ import annotations

import argparse
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

from mpiens.shard import Shard

COMPLETING = "_ARGCOMPLETE"  # set by a shell that wants words completed
USAGE = """\
mpiens SPEC.toml [options]              run it, or go on with it
       mpiens check SPEC.toml                  all faults of a spec, else the plan
       mpiens try SPEC.toml [SCENARIO [REPLICATE]]   one task in the foreground
       mpiens show FILE                        the answer as a table, CSV, Parquet, JSON
       mpiens plot FILE                        fan charts and other pictures
       mpiens report FILE                      a page for a colleague
       mpiens watch FILE                       a running file, again and again
       mpiens replay FILE SCENARIO REPLICATE   one task again, bit for bit
       mpiens replay FILE --trial K            a calibration's trial again
       mpiens merge FILE... -o FILE            shards of one ensemble become one file
       mpiens bench                            what these ranks and this disk give
       mpiens init SPEC.toml                   a spec and a model to start from
       mpiens completion bash                  what lets the shell complete words"""


def complete_words(environment: MutableMapping[str, str]) -> None:
    """Tell a shell that asks for it what its words may go on with, and end.

    Nothing happens where none asks.
    """
    if COMPLETING not in environment:
        return
    import argcomplete  # noqa: PLC0415
    from argcomplete.completers import FilesCompleter  # noqa: PLC0415

    typed = environment.get("COMP_LINE", "").split(maxsplit=2)
    begun = len(typed) > 2 or environment.get("COMP_LINE", "").endswith(" ")
    if len(typed) > 1 and begun and typed[1] in COMMANDS:
        # the command stands for the program: it has a parser of its own
        environment[COMPLETING] = str(int(environment[COMPLETING]) + 1)
        argcomplete.autocomplete(COMMANDS[typed[1]]())
    parser = run_parser(lambda: None)
    files = FilesCompleter(["toml", "json"])

    def complete(prefix: str, **rest: Any) -> list[str]:
        commands = [name for name in COMMANDS if name.startswith(prefix)]
        return [*commands, *files(prefix, **rest)]

    parser._actions[1].completer = complete  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


class _Version(argparse.Action):
    """Tell the version, and end."""

    def __init__(self, *words: Any, tell: Callable[[], None], **rest: Any) -> None:
        super().__init__(*words, **rest)
        self._tell = tell

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        self._tell()
        parser.exit()


def run_parser(tell_version: Callable[[], None]) -> argparse.ArgumentParser:
    """Return the parser of the main job, which has no word of its own."""
    parser = argparse.ArgumentParser(
        prog="mpiens",
        usage=USAGE,
        description="Run an ensemble of a stochastic simulator, alone or under "
        "srun, mpirun or mpiexec; the same command goes on with what was begun.",
    )
    parser.add_argument("spec", type=Path, metavar="SPEC.toml")
    parser.add_argument(
        *("-o", "--output"), type=Path, metavar="FILE", help="the result file"
    )
    parser.add_argument(
        *("-n", "--ranks"),
        type=_positive,
        metavar="N",
        help="start N ranks on this machine by the installed mpiexec",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="run every N-th task only, from the I-th; mpiens merge joins the files",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start over, even over a complete file"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="run tasks again that failed"
    )
    parser.add_argument(
        "--accept-model-change",
        action="store_true",
        help="go on although the model's code has changed",
    )
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        tell=tell_version,
        help="what a report of a bug wants to know",
    )
    parser.set_defaults(act="run")
    return parser


def _check_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens check", description="Tell all faults of a spec, else its plan."
    )
    parser.add_argument("spec", type=Path, metavar="SPEC.toml")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE")
    parser.add_argument(
        "--twice",
        action="store_true",
        help="run a task twice in one runner and in two, and compare the bits",
    )
    parser.set_defaults(act="check")
    return parser


def _try_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens try", description="Run one task in the foreground, without MPI."
    )
    parser.add_argument("spec", type=Path, metavar="SPEC.toml")
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO")
    parser.add_argument("replicate", nargs="?", type=int, default=0)
    parser.add_argument("--pdb", action="store_true", help="look at a fault in pdb")
    parser.set_defaults(act="try")
    return parser


def _replay_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens replay",
        description="Run one task of a result file again, in the foreground, and say "
        "whether it gives the same bits.",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO")
    parser.add_argument("replicate", nargs="?", type=int, metavar="REPLICATE")
    parser.add_argument(
        "--trial", type=int, metavar="K", help="all of a calibration's trial, its loss"
    )
    parser.add_argument("--pdb", action="store_true", help="look at a fault in pdb")
    parser.set_defaults(act="replay")
    return parser


def _merge_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens merge",
        description="Merge shards into one file, alone or under srun or mpirun; where "
        "tasks are missing it stays partial, and what to run is told.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument(
        *("-o", "--output"), type=Path, metavar="FILE", required=True, help="the result"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="replace a file that is there"
    )
    parser.set_defaults(act="merge")
    return parser


def _bench_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens bench",
        description="Measure what these ranks and this file system give, by small "
        "ensembles, and say what that means; under srun, mpirun or alone.",
    )
    parser.add_argument(
        *("-n", "--ranks"),
        type=_positive,
        metavar="N",
        help="start N ranks on this machine by the installed mpiexec",
    )
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        metavar="FOLDER",
        default=Path(),
        help="where results would go; what is written there is removed again",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    parser.add_argument(
        "--task-seconds", type=_amount, metavar="S", help="what a task of yours takes"
    )
    parser.add_argument(
        "--row-bytes",
        type=_positive,
        metavar="B",
        default=8,
        help="what a task of yours returns",
    )
    parser.set_defaults(act="bench")
    return parser


def _show_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens show", description="Show a result file, complete or not."
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--digest", action="store_true", help="64 hex digits only")
    form.add_argument("--csv", action="store_true", help="one row per scenario")
    form.add_argument("--json", action="store_true", help="one JSON object")
    form.add_argument(
        "--parquet", type=Path, metavar="TABLE", help="as --csv, with types, to a file"
    )
    parser.add_argument(
        "--long",
        action="store_true",
        help="one row per task, for --csv and --parquet",
    )
    parser.add_argument(
        "--columns", metavar="A,B,...", help="these columns only, in this order"
    )
    parser.set_defaults(act="show")
    return parser


def _plot_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens plot",
        description="Draw a result file, complete or not: fans of curves, differences, "
        "summaries, points of a design, a cube, a calibration, joined curves.",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument(
        *("-o", "--to"), type=Path, metavar="PICTURE", help=".png, .svg or .pdf"
    )
    parser.add_argument(
        "--kind",
        choices=[
            "fans",
            "differences",
            "summaries",
            "points",
            "cube",
            "search",
            "joined",
        ],
        help="what to draw; without it what suits the file",
    )
    parser.add_argument(
        "--output", action="append", default=[], metavar="NAME", help="only this one"
    )
    parser.add_argument(
        "--scenario", action="append", default=[], metavar="NAME", help="only this one"
    )
    parser.add_argument("--over", action="store_true", help="scenarios over each other")
    parser.add_argument("--log", action="store_true", help="a logarithmic scale")
    parser.add_argument("--size", choices=["column", "page"], default="page")
    parser.add_argument(
        "--style", type=Path, metavar="FILE", help="a style sheet of matplotlib"
    )
    parser.set_defaults(act="plot")
    return parser


def _report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens report",
        description="Write one page with the answer, charts, failures, and how it was "
        "made; it needs no other file and no network.",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE.html")
    parser.set_defaults(act="report")
    return parser


def _watch_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens watch",
        description="Follow a file while it is being written, from any machine that "
        "sees it, until it is complete.",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--every", type=_amount, default=5.0, metavar="SECONDS")
    parser.add_argument("--once", action="store_true", help="look once, and end")
    parser.set_defaults(act="watch")
    return parser


def _init_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens init",
        description="Write a spec and a model to start from, line by line explained.",
    )
    parser.add_argument(
        "spec", type=Path, nargs="?", default=Path("sweep.toml"), metavar="SPEC.toml"
    )
    parser.set_defaults(act="init")
    return parser


def _completion_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens completion",
        description='Print what lets a shell complete words: eval "$(mpiens completion '
        'bash)" in ~/.bashrc.',
    )
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh", "fish"])
    parser.set_defaults(act="completion")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few")
    return number


def _amount(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no length of time")
    return number


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


COMMANDS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "check": _check_parser,
    "try": _try_parser,
    "show": _show_parser,
    "replay": _replay_parser,
    "merge": _merge_parser,
    "bench": _bench_parser,
    "plot": _plot_parser,
    "report": _report_parser,
    "watch": _watch_parser,
    "init": _init_parser,
    "completion": _completion_parser,
}
"""By the word that comes first; without one of them it is the main job."""
