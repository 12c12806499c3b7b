"""What is typed: ``mpiens SPEC.toml``, and the commands around it."""

from __future__ import annotations

import os

# one thread per rank, unless the user says otherwise; before numpy is imported
for _name in ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMEXPR"):
    os.environ.setdefault(f"{_name}_NUM_THREADS", "1")

import argparse  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from types import ModuleType  # noqa: E402
from typing import Any  # noqa: E402

from mpiens import compilation  # noqa: E402
from mpiens.deadline import Deadline  # noqa: E402
from mpiens.fault import Fault, SpecError  # noqa: E402
from mpiens.shard import Shard, default_file  # noqa: E402
from mpiens.trouble import STOPPED_EARLY, WRONG_INPUT, Trouble  # noqa: E402

_COMPLETING = "_ARGCOMPLETE"  # set by a shell that wants words completed
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


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit code."""
    compilation.share_cache(os.environ)
    words = sys.argv[1:] if arguments is None else arguments
    if _COMPLETING in os.environ:
        _complete_words()
    if words and words[0] in _COMMANDS:
        options = _COMMANDS[words[0]]().parse_args(words[1:])
    else:
        options = _run_parser().parse_args(words)
    try:
        return int(options.act(options))
    except SpecError as error:
        return _tell_faults(error)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _tell_faults(error: SpecError) -> int:
    print("\n".join(error.lines()), file=sys.stderr)
    return WRONG_INPUT


def _complete_words() -> None:
    """Tell the shell what the words so far may go on with, and end."""
    import argcomplete  # noqa: PLC0415
    from argcomplete.completers import FilesCompleter  # noqa: PLC0415

    typed = os.environ.get("COMP_LINE", "").split(maxsplit=2)
    begun = len(typed) > 2 or os.environ.get("COMP_LINE", "").endswith(" ")
    if len(typed) > 1 and begun and typed[1] in _COMMANDS:
        # the command stands for the program: it has a parser of its own
        os.environ[_COMPLETING] = str(int(os.environ[_COMPLETING]) + 1)
        argcomplete.autocomplete(_COMMANDS[typed[1]]())
    parser = _run_parser()
    files = FilesCompleter(["toml", "json"])

    def complete(prefix: str, **rest: Any) -> list[str]:
        commands = [name for name in _COMMANDS if name.startswith(prefix)]
        return [*commands, *files(prefix, **rest)]

    parser._actions[1].completer = complete  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def _run(options: argparse.Namespace) -> int:
    if options.ranks is not None:
        return _launch(options)
    deadline = Deadline.of(os.environ)
    deadline.listen()  # first of all: a signal may come while libraries are loaded
    # MPI before HDF5: else an MPI-built h5py may load another MPI than mpi4py does
    mpi = _load_mpi()
    from mpiens import ensemble  # noqa: PLC0415
    from mpiens.request import Request  # noqa: PLC0415

    request = Request(
        spec=options.spec,
        output=options.output,
        fresh=options.fresh,
        retry_failed=options.retry_failed,
        accept_model_change=options.accept_model_change,
        shard=options.shard,
    )
    return _together(mpi, ensemble.run, request, deadline)


def _merge(options: argparse.Namespace) -> int:
    deadline = Deadline.of(os.environ)
    deadline.listen()
    mpi = _load_mpi()
    from mpiens import ensemble, merge  # noqa: PLC0415

    sources = merge.Sources(tuple(options.files), options.output, options.fresh)
    return _together(mpi, ensemble.merge, sources, deadline)


def _bench(options: argparse.Namespace) -> int:
    if options.ranks is not None:
        return _launch(options)
    deadline = Deadline.of(os.environ)
    deadline.listen()
    mpi = _load_mpi()
    from mpiens import bench  # noqa: PLC0415

    wishes = bench.Wishes(
        options.output, options.json, options.task_seconds, options.row_bytes
    )
    return _together(mpi, bench.bench, wishes, deadline, tables=False)


def _together(
    mpi: ModuleType,
    act: Callable[..., int],
    request: Any,
    deadline: Deadline,
    *,
    tables: bool = True,
) -> int:
    """Do something on all ranks, end them in good order, and return the exit code."""
    try:
        comm = mpi.start()
    except mpi.LaunchError as error:
        raise SpecError([Fault("", str(error))]) from error
    try:
        code = act(comm, request, deadline)
        if comm.rank == 0 and code in (0, 3) and tables:
            _print_tables(request.file)
    except SpecError as error:
        code = _tell_faults(error) if comm.rank == 0 else WRONG_INPUT
    except Trouble as trouble:
        code = trouble.code
        if comm.rank == 0:
            print(f"mpiens: {trouble}", file=sys.stderr)
    sys.stdout.flush()
    mpi.finish(comm, code)
    return code


def _load_mpi() -> ModuleType:
    """Import the one module that loads MPI; a sentence where there is none to load."""
    try:
        from mpiens import mpi  # noqa: PLC0415
    except (ImportError, RuntimeError) as error:
        text = (
            "no MPI library can be loaded: load the module of your cluster's MPI, or "
            f'install one by pip install "mpiens[mpich]" ({str(error).splitlines()[0]})'
        )
        raise SpecError([Fault("", text)]) from error
    return mpi


def _launch(options: argparse.Namespace) -> int:
    """Start ranks of this same command on this machine."""
    mpi = _load_mpi()
    from mpiens import launch  # noqa: PLC0415

    try:
        command, environment = mpi.launch_command(options.ranks)
    except mpi.LaunchError as error:
        raise SpecError([Fault("", str(error))]) from error
    words = [sys.executable, "-m", "mpiens", *_without_ranks(sys.argv[1:])]
    file: Path | None = None
    if options.act is _run:
        file = options.output or default_file(options.spec, options.shard)
    return launch.Launch([*command, *words], environment, file).run()


def _without_ranks(words: list[str]) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-n", "--ranks", type=int)
    return parser.parse_known_args(words)[1]


def _check(options: argparse.Namespace) -> int:
    from mpiens import plan  # noqa: PLC0415

    found = plan.check(options.spec, options.output)
    print("\n".join(found.lines()))
    found.refuse()
    if options.twice:
        from mpiens import twice  # noqa: PLC0415

        return twice.compare_twice(options.spec, found.spec)
    return 0


def _try(options: argparse.Namespace) -> int:
    from mpiens import foreground  # noqa: PLC0415

    return foreground.try_task(
        options.spec, options.scenario, options.replicate, pdb=options.pdb
    )


def _replay(options: argparse.Namespace) -> int:
    from mpiens import foreground  # noqa: PLC0415

    if options.trial is not None:
        return foreground.replay_trial(options.file, options.trial)
    if options.scenario is None or options.replicate is None:
        text = "give SCENARIO and REPLICATE, or of a calibration --trial"
        raise SpecError([Fault("", text)])
    return foreground.replay_task(
        options.file, options.scenario, options.replicate, pdb=options.pdb
    )


def _show(options: argparse.Namespace) -> int:
    from mpiens.store import Store  # noqa: PLC0415
    from mpiens.table import Table  # noqa: PLC0415

    if options.digest:
        digest = Store(options.file).attributes.get("digest")
        if digest is None:
            return STOPPED_EARLY
        print(digest)
        return 0
    if options.csv or options.parquet:
        return _write_frame(options)
    for option in ("long", "columns"):
        if getattr(options, option):
            text = "goes with --csv or --parquet; add either"
            raise SpecError([Fault(f"--{option}", text)])
    if options.json:
        sys.stdout.write(Table(Store(options.file)).to_json() + "\n")
    else:
        _print_table(options.file)
    return 0


def _write_frame(options: argparse.Namespace) -> int:
    from mpiens import frame  # noqa: PLC0415
    from mpiens.store import Store  # noqa: PLC0415

    store = Store(options.file)
    made = frame.by_task(store) if options.long else frame.by_scenario(store)
    if options.columns:
        made = frame.select(made, options.columns.split(","))
    if options.parquet is None:
        frame.write_csv(made, sys.stdout)
        return 0
    if options.parquet.exists() and options.parquet.samefile(options.file):
        text = "is the result file itself; choose another name"
        raise SpecError([Fault("--parquet", text)], str(options.parquet))
    frame.write_parquet(made, options.parquet)
    return 0


def _plot(options: argparse.Namespace) -> int:
    from mpiens import picture  # noqa: PLC0415
    from mpiens.store import Store  # noqa: PLC0415
    from mpiens.view import View  # noqa: PLC0415

    view = View(
        Store(options.file),
        outputs=tuple(options.output),
        scenarios=tuple(options.scenario),
        log=options.log,
        over=options.over,
    )
    file = options.to or Path(f"{options.file.stem}.png")
    picture.draw(view, file, kind=options.kind, size=options.size, style=options.style)
    print(file)
    return 0


def _report(options: argparse.Namespace) -> int:
    from mpiens import report  # noqa: PLC0415

    page = options.output or Path(f"{options.file.stem}.html")
    report.write_report(options.file, page)
    print(page)
    return 0


def _watch(options: argparse.Namespace) -> int:
    from mpiens import watch  # noqa: PLC0415

    try:
        return watch.watch(options.file, every=options.every, once=options.once)
    except KeyboardInterrupt:  # who has seen enough
        return 0


def _init(options: argparse.Namespace) -> int:
    from mpiens import starter  # noqa: PLC0415

    for path in starter.write_starter(options.spec):
        print(path)
    print(f"now try: mpiens -n 2 {options.spec}", file=sys.stderr)
    return 0


def _completion(options: argparse.Namespace) -> int:
    try:
        from argcomplete.shell_integration import shellcode  # noqa: PLC0415
    except ImportError as error:
        text = f'this needs argcomplete: pip install "mpiens[complete]" ({error})'
        raise SpecError([Fault("", text)]) from error
    print(shellcode(["mpiens"], shell=options.shell))
    return 0


def _print_tables(file: Path) -> None:
    """Print the answer, and that of the ensemble which confirms a calibration."""
    from mpiens import confirm  # noqa: PLC0415

    _print_table(file)
    if (after := confirm.place_of(file)).exists():
        _print_table(after)


def _print_table(file: Path) -> None:
    from mpiens.store import Store  # noqa: PLC0415
    from mpiens.table import Table  # noqa: PLC0415

    Table(Store(file)).print()


def _run_parser() -> argparse.ArgumentParser:
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
    parser.add_argument("--version", action=_Version, nargs=0)
    parser.set_defaults(act=_run)
    return parser


class _Version(argparse.Action):
    """Print what matters for a report of a bug, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from mpiens import provenance  # noqa: PLC0415

        print("\n".join(provenance.describe()))
        try:
            print(_load_mpi().library())
        except SpecError as error:
            print(f"no MPI: {error.faults[0].text}")
        import h5py  # noqa: PLC0415  (after MPI, as in a run)

        parallel = "with" if h5py.get_config().mpi else "without"
        print(f"HDF5 {h5py.version.hdf5_version}, {parallel} MPI")
        parser.exit()


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
    parser.set_defaults(act=_check)
    return parser


def _try_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens try", description="Run one task in the foreground, without MPI."
    )
    parser.add_argument("spec", type=Path, metavar="SPEC.toml")
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO")
    parser.add_argument("replicate", nargs="?", type=int, default=0)
    parser.add_argument("--pdb", action="store_true", help="look at a fault in pdb")
    parser.set_defaults(act=_try)
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
    parser.set_defaults(act=_replay)
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
    parser.set_defaults(act=_merge)
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
    parser.set_defaults(act=_bench)
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
    parser.set_defaults(act=_show)
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
    parser.set_defaults(act=_plot)
    return parser


def _report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens report",
        description="Write one page with the answer, charts, failures, and how it was "
        "made; it needs no other file and no network.",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE.html")
    parser.set_defaults(act=_report)
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
    parser.set_defaults(act=_watch)
    return parser


def _init_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens init",
        description="Write a spec and a model to start from, line by line explained.",
    )
    parser.add_argument(
        "spec", type=Path, nargs="?", default=Path("sweep.toml"), metavar="SPEC.toml"
    )
    parser.set_defaults(act=_init)
    return parser


def _completion_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiens completion",
        description='Print what lets a shell complete words: eval "$(mpiens completion '
        'bash)" in ~/.bashrc.',
    )
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh", "fish"])
    parser.set_defaults(act=_completion)
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


_COMMANDS = {
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

if __name__ == "__main__":
    sys.exit(main())
