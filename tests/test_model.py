"""The model: found or refused in a sentence, checked before it runs, and called."""

from __future__ import annotations

import random
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpiens import streams
from mpiens.fault import SpecError
from mpiens.growth import compare
from mpiens.layout import to_column
from mpiens.model import (
    Model,
    Signature,
    fill_parameters,
    find,
    format_failure,
    inspect_model,
    load,
)
from mpiens.reader import decode
from mpiens.spec import Spec

WRITTEN: set[str] = set()  # model files of these tests


@pytest.fixture(autouse=True)
def _same_interpreter() -> Iterator[None]:
    """Take back what a model leaves in this process: modules, paths, random states."""
    path, modules = list(sys.path), set(sys.modules)
    numpys, pythons = np.random.get_state(), random.getstate()
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", "") in WRITTEN:
            del sys.modules[name]
    np.random.set_state(numpys)
    random.setstate(pythons)


class Lab:
    """A folder with one model file, whose name no other test has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stem = f"model_{uuid.uuid4().hex}"

    @property
    def file(self) -> str:
        return f"{self.stem}.py"

    def write(self, text: str) -> None:
        path = self.folder / self.file
        path.write_text(textwrap.dedent(text))
        WRITTEN.add(str(path))

    def forget(self) -> Any:
        """Let the file be imported again; returns the module, which lives on."""
        return sys.modules.pop(self.stem)

    def spec(self, text: str = "", ensemble: str = "", name: str = "simulate") -> Spec:
        head = f'[ensemble]\nmodel = "{self.file}:{name}"\nreplicates = 3\nseed = 1\n'
        text = textwrap.dedent(text).replace("FILE", self.file)
        ensemble = ensemble.replace("FILE", self.file)
        return decode(f"{head}{ensemble}\n{text}", self.folder / "s.toml").require()

    def inspect(self, text: str = "", ensemble: str = "") -> Signature:
        return inspect_model(self.spec(text, ensemble))

    def refused(self, text: str = "", ensemble: str = "") -> list[str]:
        with pytest.raises(SpecError) as caught:
            self.inspect(text, ensemble)
        return [str(fault) for fault in caught.value.faults]

    def model(self, text: str = "", ensemble: str = "", shared: Any = None) -> Model:
        return Model(self.spec(text, ensemble), lambda: shared)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def stream(replicate: int = 0) -> streams.Stream:
    [made] = streams.make(1, [(replicate,)])
    return made


# Finding


def test_a_model_file_is_found_beside_its_spec(lab: Lab) -> None:
    lab.write("class Lab:\n    def run(): return 7\ndef simulate(): return 8")
    assert find(f"{lab.file}:simulate", str(lab.folder), "")() == 8
    assert find(f"{lab.file}:Lab.run", str(lab.folder), "")() == 7
    assert find("math:sqrt", str(lab.folder), "")(9) == 3


def test_a_file_is_imported_once_however_often_it_is_named(lab: Lab) -> None:
    lab.write("calls = []\ndef simulate(): return calls\ndef load(): return calls")
    first = find(f"{lab.file}:simulate", str(lab.folder), "")()
    assert find(f"{lab.file}:load", str(lab.folder), "")() is first


def test_a_model_can_import_what_lies_beside_it(lab: Lab) -> None:
    helper = Lab(lab.folder)
    helper.write("answer = 42")
    lab.write(f"from {helper.stem} import answer\ndef simulate(): return answer")
    assert find(f"{lab.file}:simulate", str(lab.folder), "")() == 42


def test_a_missing_file_is_named(lab: Lab) -> None:
    [told] = lab.refused()
    assert told.startswith("[ensemble] model: ")
    assert str(lab.folder / lab.file) in told


def test_a_missing_module_is_named(lab: Lab) -> None:
    with pytest.raises(SpecError, match="No module named 'no_such_module'"):
        find("no_such_module:f", str(lab.folder), "[ensemble] model")


@pytest.mark.parametrize("content", ["def simulat(): ...", "simulate = 3"])
def test_a_missing_function_is_named_with_the_nearest(lab: Lab, content: str) -> None:
    lab.write(content)
    [told] = lab.refused()
    assert f"{lab.file} has no function simulate" in told
    assert ("did you mean simulat?" in told) == ("def" in content)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("import numpy\n\nimport no_such_module", ["ModuleNotFoundError", ":3)"]),
        ("\ndef f():\n    raise ValueError('two\\nlines')\nf()", ["two lines", ":3)"]),
        ("def simulate(:", ["SyntaxError", "line 1"]),
    ],
)
def test_an_import_error_is_one_sentence_with_its_place(
    lab: Lab, content: str, parts: list[str]
) -> None:
    lab.write(content)
    [told] = lab.refused()
    for part in ("[ensemble] model: ", lab.file, *parts):
        assert part in told
    assert "\n" not in told
    assert lab.stem not in sys.modules


# Its signature


TAKES = "def simulate(rng, shared, *, beta, days=30, mask=0.0): return {'x': 1}"


def test_a_spec_that_fits_the_signature_has_no_fault(lab: Lab) -> None:
    lab.write(TAKES)
    signature = lab.inspect("[parameters]\nbeta = 1")
    assert signature.names == ("rng", "shared", "beta", "days", "mask")
    assert signature.required == ("rng", "shared", "beta")
    assert dict(signature.defaults) == {"days": 30, "mask": 0.0}
    assert not signature.anything


def test_unknown_parameters_are_told_with_the_nearest_and_all_at_once(lab: Lab) -> None:
    lab.write(TAKES)
    text = """
    [parameters]
    beta = 1
    dayz = 3
    [scenarios.masks]
    maks = 0.1
    [sweep]
    zeta = [1, 2]
    """
    told = lab.refused(text)
    takes = "simulate() takes no such parameter; it takes beta, days, mask"
    assert told[0] == f"[parameters] dayz: {takes}; did you mean days?"
    assert {t.split(": ")[0] for t in told} == {
        *("[parameters] dayz", "[scenarios.masks] maks", "[sweep] zeta")
    }


def test_a_missing_parameter_is_told_with_a_scenario_that_lacks_it(lab: Lab) -> None:
    lab.write(TAKES)
    [told] = lab.refused("[scenarios.a]\nbeta = 1\n[scenarios.b]")
    assert "simulate() needs beta, which scenario 'b' lacks" in told
    assert "[parameters]" in told


def test_faults_of_model_reduce_and_loader_are_told_at_once(lab: Lab) -> None:
    lab.write(TAKES + "\ndef reduce(): ...")
    told = lab.refused(
        '[parameters]\nbeta = 1\ndayz = 3\n[shared]\nloader = "FILE:laod"',
        'reduce = "FILE:reduce"',
    )
    assert {t.split(": ")[0] for t in told} == {
        *("[parameters] dayz", "[ensemble] reduce", "[shared] loader")
    }


def test_keywords_take_anything_and_get_nothing_that_is_not_named(lab: Lab) -> None:
    lab.write("def simulate(beta=1, **rest): return {'beta': beta, **rest}")
    text = "[parameters]\ngamma = 2"
    assert lab.inspect(text).anything
    assert lab.model(text).run(0, stream()) == {"beta": 1, "gamma": 2}


def test_a_function_without_a_signature_takes_anything(lab: Lab) -> None:
    text = '[ensemble]\nmodel = "builtins:dict"\nreplicates = 1\nseed = 1\n'
    spec = decode(text + "[parameters]\na = 1", lab.folder / "s.toml").require()
    assert inspect_model(spec).anything
    assert Model(spec, lambda: None).run(0, stream()) == {"a": 1}


def test_parameters_are_filled_with_the_signatures_defaults(lab: Lab) -> None:
    lab.write(TAKES)
    text = """
    [parameters]
    beta = 1
    [scenarios.a]
    [scenarios.b]
    mask = 0.7
    """
    filled = fill_parameters(lab.spec(text), lab.inspect(text))
    assert filled == {"beta": (1, 1), "days": (30, 30), "mask": (0.0, 0.7)}


def test_a_parameter_that_only_keywords_take_is_filled_too(lab: Lab) -> None:
    lab.write("def simulate(**rest): ...")
    text = "[scenarios.a]\n[scenarios.b]\nmask = 0.7"
    filled = fill_parameters(lab.spec(text), lab.inspect(text))
    assert filled == {"mask": (None, 0.7)}


@pytest.mark.parametrize("default", ["[1, 2]", '["a"]', "0.5", "'open'", "True"])
def test_a_default_is_worth_the_same_as_when_written_in_the_spec(
    lab: Lab, default: str
) -> None:
    lab.write(f"def simulate(weights={default}): ...")
    written = f"[parameters]\nweights = {default.lower()}"
    silent = fill_parameters(lab.spec(), lab.inspect())
    spoken = fill_parameters(lab.spec(written), lab.inspect(written))
    assert to_column(silent["weights"]) == to_column(spoken["weights"])
    assert compare(lab.spec(), lab.spec(written), silent, spoken).none


@pytest.mark.parametrize("default", ["kernel", "Policy()", "numpy.ones(3)", "(1, 2)"])
def test_any_default_reads_the_same_in_every_process(lab: Lab, default: str) -> None:
    lab.write(
        f"""
        import numpy
        def kernel(x): ...
        class Policy: ...
        def simulate(given={default}): ...
        """
    )
    spec = lab.spec()
    first = fill_parameters(spec, inspect_model(spec))
    alive = lab.forget()  # so that the second module has other addresses
    second = fill_parameters(spec, inspect_model(spec))
    assert alive is not sys.modules[lab.stem]
    assert compare(spec, spec, first, second).none


def test_a_default_of_numpy_is_a_number(lab: Lab) -> None:
    lab.write("import numpy\ndef simulate(rate=numpy.float64(0.5), n=numpy.int8(3)): 0")
    filled = fill_parameters(lab.spec(), lab.inspect())
    assert filled == {"rate": (0.5,), "n": (3,)}
    assert [type(values[0]) for values in filled.values()] == [float, int]


@pytest.mark.parametrize(
    "signature",
    ["raw", "raw, shared", "raw, scenario, replicate=0", "raw, *, other=3", "*raw"],
)
def test_a_reduce_that_can_be_called_is_taken(lab: Lab, signature: str) -> None:
    lab.write(f"def simulate(): return 7\ndef reduce({signature}): return {{'x': 1}}")
    lab.inspect(ensemble='reduce = "FILE:reduce"')
    run = lab.model(ensemble='reduce = "FILE:reduce"')
    assert run.run(0, stream()) == {"x": 1}


@pytest.mark.parametrize("signature", ["", "raw, beta", "raw, rng", "*, raw"])
def test_a_reduce_that_cannot_be_called_is_a_fault_of_the_spec(
    lab: Lab, signature: str
) -> None:
    lab.write(f"def simulate(): ...\ndef reduce({signature}): ...")
    [told] = lab.refused(ensemble='reduce = "FILE:reduce"')
    assert told.startswith("[ensemble] reduce: ")
    assert "shared, scenario, replicate" in told


@pytest.mark.parametrize("part", ["simulate", "reduce", "load"])
def test_the_fingerprint_changes_with_every_file_that_is_named(
    lab: Lab, part: str
) -> None:
    files = {name: Lab(lab.folder) for name in ("simulate", "reduce", "load")}
    for name, file in files.items():
        file.write(f"def {name}(*raw): return 1")

    def fingerprint() -> str:
        text = (
            f'[ensemble]\nmodel = "{files["simulate"].file}:simulate"\n'
            f'reduce = "{files["reduce"].file}:reduce"\nreplicates = 1\nseed = 1\n'
            f'[shared]\nloader = "{files["load"].file}:load"'
        )
        return inspect_model(decode(text, lab.folder / "s.toml").require()).code

    before = fingerprint()
    assert fingerprint() == before
    files[part].write(f"def {part}(*raw): return 2")
    files[part].forget()
    assert fingerprint() != before


@pytest.mark.parametrize(
    "definition",
    [
        "simulate = functools.partial(run)",
        "simulate = functools.lru_cache(run)",
        "class Lab:\n    def __call__(self): ...\nsimulate = Lab()",
    ],
)
def test_the_fingerprint_is_of_the_users_file_whatever_the_callable(
    lab: Lab, definition: str
) -> None:
    text = f"import functools\ndef run(): return VALUE\n{definition}\n"
    lab.write(text.replace("VALUE", "1"))
    before = lab.inspect().code
    lab.write(text.replace("VALUE", "2"))
    lab.forget()
    assert lab.inspect().code != before


# Calling


def test_injected_names_are_passed_only_where_named(lab: Lab) -> None:
    names = ("rng", "seed", "shared", "scenario", "replicate")
    text = "[parameters]\nbeta = 0.5\n[scenarios.a]\n[scenarios.b]"
    for name in names:
        lab.write(f"def simulate(beta, {name}): return {{{name!r}: {name}}}")
        returned = lab.model(text, shared="the data").run(5, stream(2))
        lab.forget()
        assert list(returned) == [name]
        if name == "rng":
            assert returned["rng"].random() == stream(2).rng().random()
        else:
            expected = {"seed": stream(2).seed, "shared": "the data"}
            expected |= {"scenario": "b", "replicate": 2}
            assert returned[name] == expected[name]
    lab.write("def simulate(beta): return {'beta': beta}")
    assert lab.model(text).run(5, stream(2)) == {"beta": 0.5}


def test_parameters_of_the_scenario_arrive_by_keyword(lab: Lab) -> None:
    lab.write("def simulate(*, days, mask=0.0, beta): return (days, mask, beta)")
    model = lab.model(
        "[parameters]\ndays = 9\n[scenarios.a]\n[scenarios.b]\nmask = 0.7\n"
        "[sweep]\nbeta = [1, 2]"
    )
    returned = [model.run(task, stream()) for task in range(0, 12, 3)]
    assert returned == [(9, 0.0, 1), (9, 0.0, 2), (9, 0.7, 1), (9, 0.7, 2)]


def test_legacy_generators_are_seeded_by_the_stream(lab: Lab) -> None:
    lab.write(
        """
        import random
        import numpy
        def simulate():
            return random.random(), *numpy.random.random(3)
        """
    )
    model = lab.model()
    first, other, again = (model.run(t, stream(t)) for t in (0, 1, 0))
    assert first == again
    assert first != other
    seed = int(np.random.SeedSequence(1, spawn_key=(0,)).generate_state(1)[0])
    numpys = np.random.RandomState(seed).random_sample(3)
    assert first == (random.Random(seed).random(), *numpys)


def test_reduce_gets_the_result_and_what_it_names(lab: Lab) -> None:
    lab.write(
        """
        def simulate(shared): return [shared, "raw"]
        def reduce(raw, *, replicate, shared, scenario):
            return {"got": (raw, shared, scenario, replicate)}
        """
    )
    model = lab.model(ensemble='reduce = "FILE:reduce"', shared="data")
    assert model.run(2, stream(2)) == {"got": (["data", "raw"], "data", "default", 2)}


def test_reduce_is_not_given_what_it_does_not_name(lab: Lab) -> None:
    lab.write("def simulate(rng): return 7\ndef reduce(raw, rng=None): return raw, rng")
    model = lab.model(ensemble='reduce = "FILE:reduce"')
    assert model.run(0, stream()) == (7, None)


def test_a_failure_shows_the_models_frames_and_none_of_ours(lab: Lab) -> None:
    lab.write("def simulate():\n    inner()\ndef inner():\n    raise ValueError('why')")
    with pytest.raises(ValueError, match="why") as caught:
        lab.model().run(0, stream())
    error = caught.value
    assert error.__traceback__ is not None
    error = error.with_traceback(error.__traceback__.tb_next)  # without this test's
    told = format_failure(error)
    assert "ValueError: why" in told
    assert f'{lab.file}", line 4, in inner' in told
    assert "mpiens/model.py" not in told


# Loading


def test_a_loader_gets_its_keywords(lab: Lab) -> None:
    lab.write("def load(path, since=None): return path, since")
    text = '[shared]\nloader = "FILE:load"\nkwargs = { path = "a.h5" }'
    spec = lab.spec(text)
    assert load(spec.shared, spec.folder) == ("a.h5", None)
    assert load(None, spec.folder) is None


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("raise OSError('no contacts')", ["OSError: no contacts", ":2)"]),
        ("return open('/no/such/file')", ["FileNotFoundError", "/no/such/file", ":2)"]),
    ],
)
def test_a_loaders_fault_is_a_fault_of_the_spec(
    lab: Lab, body: str, parts: list[str]
) -> None:
    lab.write(f"def load():\n    {body}")
    spec = lab.spec('[shared]\nloader = "FILE:load"')
    with pytest.raises(SpecError) as caught:
        load(spec.shared, spec.folder)
    [fault] = caught.value.faults
    assert fault.place == "[shared] loader"
    assert all(part in fault.text for part in (lab.file, *parts))
    assert isinstance(caught.value.__cause__, OSError)


def test_keywords_that_a_loader_does_not_take_are_named(lab: Lab) -> None:
    lab.write("def load(): ...")
    spec = lab.spec('[shared]\nloader = "FILE:load"\nkwargs = { paht = 1 }')
    with pytest.raises(SpecError, match="paht"):
        load(spec.shared, spec.folder)
