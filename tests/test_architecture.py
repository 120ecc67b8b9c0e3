"""The shape of the package: who may import whom, and what no file may do."""

import ast
import graphlib
import tomllib
from pathlib import Path

import pytest

import longtail

SOURCE = Path(longtail.__file__).parent
# From the ground up.
ROOMS = (
    "losses metrics data models memory methods training estimators reporting deployment segmentation planning"
).split()
GROUND = {
    "errors": set(),
    "option_groups": set(),
    "segmentation_options": set(),
    "config": {"errors", "option_groups", "segmentation_options"},
    "files": {"errors"},
    "hub": {"errors"},
    "options": {"config", "errors"},
    "rank_errors": {"errors"},
    "ranks": {"errors", "rank_errors"},
    "launched": {"errors", "ranks"},
    "exchange": set(),
}
API = "api"
STUDIES = "studies"  # above the api: a cell of a study is a call of train
TOP = {"cli", "verbs", "__main__", "__init__"}
MODULES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def room_of(module):
    """`training/loop.py` and `longtail.training.loop` are of room training, `files.py` is its own."""
    return module.parts[0].removesuffix(".py") if isinstance(module, Path) else [*module.split("."), "__init__"][1]


def tree_of(module):
    return ast.parse((SOURCE / module).read_text(encoding="utf-8"))


def dotted(module):
    """`training/loop.py` as `longtail.training.loop`, a package's `__init__.py` as the package."""
    return ".".join(["longtail", *module.with_suffix("").parts]).removesuffix(".__init__")


def imports_of(module):
    """Every longtail module that ``module`` imports, at its top or later, as `(dotted name, line)`."""
    package = ["longtail", *module.parts[:-1]]
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "longtail")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            if name.split(".")[0] != "longtail":
                continue
            for (
                alias
            ) in node.names:  # `from longtail import api` names a module, `from longtail.api import x` holds one
                full = f"{name}.{alias.name}"
                yield (full if is_module(full) else name), node.lineno


def is_module(name):
    path = SOURCE.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def allowed_rooms(room):
    if room in GROUND:
        return GROUND[room]
    if room in ROOMS:
        return {*GROUND, *ROOMS[: ROOMS.index(room) + 1]}
    if room in (API, STUDIES):
        return {*GROUND, *ROOMS, API, room}
    return {*GROUND, *ROOMS, API, STUDIES, *TOP}


def test_every_module_has_its_place():
    assert {room_of(module) for module in MODULES} == {*GROUND, *ROOMS, API, STUDIES, *TOP}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_down_to_the_ground_only(module):
    allowed = allowed_rooms(room_of(module)) | {
        "__init__"
    }  # `import longtail` itself holds the version and nothing more
    wrong = [f"line {line}: {name}" for name, line in imports_of(module) if room_of(name) not in allowed]
    assert not wrong, f"{module} may import {sorted(allowed)} but has {wrong}"


def test_the_walk_sees_relative_and_late_imports():
    # Guards the test above against passing because it finds nothing.
    assert "longtail.api" in {name for name, _ in imports_of(Path("cli.py"))}
    assert "longtail.reporting.report" in {name for name, _ in imports_of(Path("reporting/__init__.py"))}


def test_no_circles():
    # The package's own __init__ imports late, by name, and for type checkers only.
    graph = {dotted(m): {name for name, _ in imports_of(m)} - {"longtail"} for m in MODULES if m != Path("__init__.py")}
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_device_literal_and_no_unpickling(module):
    wrong = []
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            wrong.append((node.lineno, ".cuda()"))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "torch" and node.attr in ("load", "save"):
                wrong.append((node.lineno, f"torch.{node.attr}"))
            # To catch what another library's unpickling raises is not to unpickle.
            if node.value.id in UNPICKLERS and node.attr != "UnpicklingError":
                wrong.append((node.lineno, f"{node.value.id}.{node.attr}"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            wrong.append((node.lineno, f"from {node.module}"))
        if isinstance(node, ast.Import):
            wrong += [(node.lineno, f"import {a.name}") for a in node.names if a.name in UNPICKLERS - {"pickle"}]
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            refused = isinstance(node.value, ast.Constant) and node.value.value is False
            wrong += [] if refused else [(node.value.lineno, "allow_pickle")]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cuda"):
            wrong.append((node.lineno, f"the device literal {node.value!r}"))
    # run_folder.py asks for the name of a device that it was given, for the record only; capture.py says which devices
    # can record a step, which is taken as it is on all others.
    known = ("training/run_folder.py", "training/capture.py")
    wrong = [w for w in wrong if str(module) not in known or w[1] != "the device literal 'cuda'"]
    # weight_files.py is the one door for others' .pth files, through weights_only=True.
    if str(module) == "models/weight_files.py":
        source = (SOURCE / module).read_text(encoding="utf-8")
        assert source.count("torch.load(") == source.count("weights_only=True") == 1
        wrong = [w for w in wrong if w[1] != "torch.load"]
    assert not wrong, f"{module}: {wrong}"


def test_version_is_told_once():
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert longtail.__version__ == project["version"]
