"""Imports go down the layers of docs/design.md, files say their job, and nothing here can execute what it reads."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    0: {"calculus", "episode", "labels", "noise", "tensor_noise", "errors", "memory", "side_by_side"},
    1: {"data", "models", "tasks"},
    2: {"learners"},
    3: {
        "engine",
        "loop",
        "checkpoint",
        "judging",
        "ranks",
        "notices",
        "adaptation",
        "meta_features",
        "spool",
        "shipment",
        "shipped_data",
        "shipped_model",
        "tracking",
        "pictures",
    },
    4: {
        "schema",
        "config",
        "faults",
        "build",
        "build_mixture",
        "build_outer",
        "build_schedule",
        "build_shape",
        "build_task",
        "build_encoder",
        "build_gradient",
        "build_metric",
        "build_amortised",
        "start",
        "restore",
        "ancestry",
        "frozen",
        "teacher",
        "space",
        "ledger",
        "search",
        "task_family",
        "candidates",
        "lineage",
        "servable",
        "survey",
        "recipe",
        "teaching",
    },
    5: {
        "worker",
        "session",
        "evaluate",
        "compare",
        "seeds",
        "table",
        "chooser",
        "shelf",
        "choose_model",
        "choice_report",
        "evaluate_settings",
        "conclude",
        "prepare",
        "embed",
        "pair_protocol",
        "train",
        "stopping",
        "run_folder",
        "warm",
        "sweep",
        "sweeping",
        "sweep_plan",
        "tuning",
        "trial",
        "ray_groups",
        "report",
        "show",
        "register",
        "adapt",
        "serve",
        "serving",
        "predict",
        "predict_pairs",
        "export",
        "export_mlflow",
        "image_files",
        "answer_files",
        "quickstart",
        "served",
        "drawing",
        "charts",
        "watch",
        "watchdog",
        "failures",
        "preflight",
        "lease",
        "feeders",
        "aside",
        "plans",
        "archive",
        "distant",
        "mirror",
        "selection",
        "choose_samples",
        "status",
        "tables",
        "swept",
        "sweep_charts",
        "importance",
        "page",
        "pages",
        "page_server",
        "machine",
    },
    6: {"cli", "cli_choose", "cli_data", "cli_runs", "cli_told", "cli_use"},
}
LAYER = {part: layer for layer, parts in LAYERS.items() for part in parts}
TELLING = {"spool", "tracking", "shipment", "shipped_data", "shipped_model", "pictures", "checkpoint"}
"""Parts of layer 3 that write files and pictures; the others, and the layers below except data, need torch alone."""
WRITERS_USE = {"torch", "psutil", "matplotlib", "numpy", "safetensors"}
LATER = {"pipeline.tasks.coco": {"numpy", "pycocotools"}}
"""What a file imports when something is evaluated, and not before."""


@cache
def files() -> tuple[Path, ...]:
    found = [path for folder in ("pipeline", "cluster") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(found) > 30
    return tuple(found)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    """`pipeline.data.index`; a package is its `__init__` file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in files()}


def part_of(module: str) -> str:
    """`data` of `pipeline.data.index`; empty for the package itself."""
    return (module.split(".") + [""])[1]


def imported(node: ast.AST) -> list[str]:
    """Modules that a statement imports; `from pipeline import build` imports pipeline.build."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else str(node.module) for name in inner]
    return []


def imports(path: Path) -> set[str]:
    """All modules that a file imports, wherever in it."""
    return {name for node in ast.walk(tree(path)) for name in imported(node)}


def at_module_level(path: Path) -> set[str]:
    """Modules that are imported when the file is: not those inside functions."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        found.update(imported(node))
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
    return found


def own(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "pipeline" and part_of(name)}


def foreign(names: set[str]) -> set[str]:
    """Third-party packages."""
    roots = {name.split(".")[0] for name in names}
    return roots - set(sys.stdlib_module_names) - {"pipeline", "cluster"}


def of_pipeline() -> list[tuple[str, Path]]:
    return [(name, path) for name, path in MODULES.items() if name.startswith("pipeline.")]


def test_every_part_has_a_layer():
    unknown = {part_of(name) for name, _ in of_pipeline()} - LAYER.keys()
    assert not unknown, f"give {unknown} a layer here and in docs/design.md"


def test_imports_only_go_down():
    wrong = [
        f"{name} imports {other}"
        for name, path in of_pipeline()
        for other in own(imports(path))
        if LAYER[part_of(other)] > LAYER[part_of(name)]
    ]
    assert not wrong


def test_data_models_and_tasks_do_not_know_each_other():
    wrong = [
        f"{name} imports {other}"
        for name, path in of_pipeline()
        for other in own(imports(path))
        if LAYER[part_of(name)] == LAYER[part_of(other)] == 1 and part_of(name) != part_of(other)
    ]
    assert not wrong


def test_nothing_imports_the_command_line():
    assert not [name for name, path in MODULES.items() if "pipeline.cli" in imports(path)]


def test_no_import_cycle():
    graph = {name: own(at_module_level(path)) & MODULES.keys() for name, path in of_pipeline()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_only_verbs_know_ray():
    wrong = [n for n, path in of_pipeline() if "ray" in foreign(imports(path)) and LAYER[part_of(n)] != 5]
    assert not wrong


def test_ray_is_imported_where_it_is_needed_only():
    """It takes seconds, which a run in one process and `--help` need not pay."""
    tunes = {"pipeline.trial", "pipeline.tuning"}
    assert {name for name, path in of_pipeline() if "ray" in foreign(at_module_level(path))} == tunes
    # What is Tune's own kind of thing is only loaded when a sweep works.
    assert not [n for n, path in of_pipeline() if n not in tunes and tunes & at_module_level(path)]


def test_what_runs_on_a_bare_machine_needs_torch_alone():
    for name, path in of_pipeline():
        part = part_of(name)
        if part in ("models", "tasks") or LAYER[part] in (2, 3):
            allowed = WRITERS_USE if part in TELLING else {"torch"}
            assert foreign(at_module_level(path)) <= allowed, name
            late = LATER.get(name, {"mlflow"} if part in TELLING else set())
            assert foreign(imports(path)) <= allowed | late, name


def test_cluster_and_pipeline_agree_on_what_a_job_is_told_and_how_it_leaves():
    from cluster import submission, target
    from pipeline import lineage, stopping

    assert (submission.RUN_ENV, target.DRAINED) == (lineage.RUN_ENV, stopping.DRAINED)


def test_cluster_imports_nothing_of_pipeline():
    assert not [n for n, path in MODULES.items() if n.split(".")[0] == "cluster" and own(imports(path))]


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_a_file_says_its_job_first(path):
    said = ast.get_docstring(tree(path))
    assert said and said.splitlines()[0].strip(), f"{path} must begin with a sentence"


def calls(path: Path):
    """(dotted name of what is called, call) for every call."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
                "os.system", "os.popen", "importlib.import_module"}  # fmt: skip
UNSAFE_METHODS = {"extractall", "extract", "read_pickle"}


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_nothing_that_is_read_can_be_executed(path):
    """Law 6."""
    assert not {name.split(".")[0] for name in imports(path)} & UNSAFE_MODULES
    for called, call in calls(path):
        assert called not in UNSAFE_CALLS, f"{path}:{call.lineno} calls {called}"
        assert called.rsplit(".", 1)[-1] not in UNSAFE_METHODS, f"{path}:{call.lineno} calls {called}"
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        assert is_false(options.get("shell")), f"{path}:{call.lineno} gives a command to a shell"
        assert is_false(options.get("allow_pickle")), f"{path}:{call.lineno} lets pickles in"
        if called in ("np.load", "numpy.load", "np.lib.format.read_array"):
            assert "allow_pickle" in options, f"{path}:{call.lineno} must say allow_pickle=False"


def is_false(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is False)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("from pipeline import build", test_imports_only_go_down),
        ("from pipeline import cli", test_nothing_imports_the_command_line),
        ("def f():\n    import ray", test_only_verbs_know_ray),
        ("import numpy", test_what_runs_on_a_bare_machine_needs_torch_alone),
        ("import pipeline.loop\nimport pipeline.engine", test_no_import_cycle),
    ],
)
def test_a_broken_rule_is_noticed(tmp_path, monkeypatch, line, rule):
    """Each rule, broken once in the file of the engine."""
    path = tmp_path / "engine.py"
    path.write_text(f'"""Breaks a rule."""\n{line}\n')
    monkeypatch.setitem(MODULES, "pipeline.engine", path)
    with pytest.raises(AssertionError):
        rule()


@pytest.mark.parametrize(
    "line",
    ["eval('1')", "exec('1')", "import pickle", "from pickle import loads", "torch.load(x)", "yaml.load(x, L)", "np.load(x)",
     "run('ls', shell=True)", "np.load(x, allow_pickle=True)", "tar.extractall()", "np.load(x, allow_pickle=y)"],
)  # fmt: skip
def test_what_executes_is_noticed(tmp_path, line):
    path = tmp_path / "x.py"
    path.write_text(f'"""Executes what it reads."""\n{line}\n')
    with pytest.raises(AssertionError):
        test_nothing_that_is_read_can_be_executed(path)
