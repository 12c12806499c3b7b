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
from mpiens.arguments import COMMANDS, complete_words, run_parser  # noqa: E402
from mpiens.deadline import Deadline  # noqa: E402
from mpiens.fault import Fault, SpecError  # noqa: E402
from mpiens.shard import default_file  # noqa: E402
from mpiens.trouble import STOPPED_EARLY, WRONG_INPUT, Trouble  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit code."""
    compilation.share_cache(os.environ)
    words = sys.argv[1:] if arguments is None else arguments
    complete_words(os.environ)
    if words and words[0] in COMMANDS:
        options = COMMANDS[words[0]]().parse_args(words[1:])
    else:
        options = run_parser(_tell_version).parse_args(words)
    try:
        return _ACTS[options.act](options)
    except SpecError as error:
        return _tell_faults(error)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _tell_faults(error: SpecError) -> int:
    print("\n".join(error.lines()), file=sys.stderr)
    return WRONG_INPUT


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
    if options.act == "run":
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


def _tell_version() -> None:
    """Print what matters for a report of a bug."""
    from mpiens import provenance  # noqa: PLC0415

    print("\n".join(provenance.describe()))
    try:
        print(_load_mpi().library())
    except SpecError as error:
        print(f"no MPI: {error.faults[0].text}")
    import h5py  # noqa: PLC0415  (after MPI, as in a run)

    parallel = "with" if h5py.get_config().mpi else "without"
    print(f"HDF5 {h5py.version.hdf5_version}, {parallel} MPI")


_ACTS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "check": _check,
    "try": _try,
    "show": _show,
    "replay": _replay,
    "merge": _merge,
    "bench": _bench,
    "plot": _plot,
    "report": _report,
    "watch": _watch,
    "init": _init,
    "completion": _completion,
}

if __name__ == "__main__":
    sys.exit(main())
