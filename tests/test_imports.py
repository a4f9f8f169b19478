"""The house: imports point one way, and heavy packages load only where they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import negindex
import negindex.sampler
import negindex.testing

CORE, SAMPLER = (Path(p.__file__).parent for p in (negindex, negindex.sampler))
EVALUATION = SAMPLER / "evaluation"
LAYERS = [  # lowest first; a module may import from lower layers and, within the store, from its left
    ["errors", "checks", "text", "offline", "stages", "traced", "summed", "blas"],
    ["exchange"],
    ["address"],
    ["link"],
    ["noise", "kmeans", "unread", "gaussians", "disk", "merkle", "clocks", "tables", "hamming", "geometry"],
    ["states"],
    ["keys", "claim_rules", "log", "tensors", "rowstore", "rowcache", "draft"],
    ["regimes", "checkpoint", "schema", "kernel", "segment", "binding", "objects"],
    ["away", "incoming", "bulk"],
    ["change", "segments", "partial", "receipts", "moments", "projection", "ledger", "audit"],
    ["catalogue", "near", "replay", "proof", "logcheck"],
    ["upkeep", "negatives", "alike", "standing", "known"],
    ["exact", "members", "rounds", "history", "dedup", "nearest"],
    ["held_out", "clusters", "union"],
    ["calibration", "head"],
    ["trust", "spheres"],
    ["literal"],
    ["mixture", "table"],
    ["index", "on_engine"],
    ["derived"],
    ["snapshot"],
    ["store", "labelled", "stored"],
    ["claims", "verify", "backup", "moving"],
    ["collection"],
    ["push", "milvus"],
    ["reports"],
    ["wire", "line"],
    ["problems", "bodies"],
    ["endpoint"],
    ["client"],
    ["held", "asked", "logs", "settings"],
    ["grants", "kept"],
    ["people"],
    ["sign_on"],
    ["access", "metrics", "limits", "provider", "tracing", "parsing"],
    ["answering", "batching", "alarms"],
    ["scheduled", "encoding"],
    ["state", "janitor"],
    ["document"],
    ["routes", "straight"],
    ["operations"],
    ["words", "plot", "images", "sessions", "noted", "erasures"],
    ["rendering"],
    ["visits", "forms"],
    ["steps", "login"],
    ["provided"],
    ["claim_pages"],
    ["claiming"],
    ["row_pages", "set_pages", "receipt_pages"],
    ["site"],
    ["app"],
    ["run"],
]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}


def imported(path):
    """Names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder, *skip):
    return [p for p in sorted(folder.rglob("*.py")) if not any(part in p.relative_to(folder).parts for part in skip)]


@pytest.mark.parametrize("path", files(CORE, "sampler", "tools", "data"), ids=lambda p: p.name)
def test_the_core_imports_neither_the_sampler_nor_the_tools_nor_heavy_packages(path):
    for name in imported(path):
        assert not name.startswith(("negindex.sampler", "negindex.tools", "diffusers", "open_clip", "click")), name


@pytest.mark.parametrize("path", files(SAMPLER, "evaluation"), ids=lambda p: p.name)
def test_the_sampler_imports_neither_the_evaluation_nor_the_tools(path):
    for name in imported(path):
        assert not name.startswith(("negindex.sampler.evaluation", "negindex.tools", "click")), name


@pytest.mark.parametrize("path", files(EVALUATION), ids=lambda p: p.name)
def test_the_evaluation_imports_no_tools(path):
    for name in imported(path):
        assert not name.startswith(("negindex.tools", "click")), name


@pytest.mark.parametrize("path", files(CORE, "sampler", "tools", "data", "testing"), ids=lambda p: p.name)
def test_inside_the_core_arrows_point_down(path):
    if path.stem == "__init__":
        return
    assert path.stem in RANK, f"{path.name} has no place in LAYERS; give it one"
    for name in imported(path):
        package, _, rest = name.partition(".")
        module = rest.removeprefix("service.").removeprefix("pages.").removeprefix("engines.").split(".")[0]
        if package == "negindex" and module in RANK:
            assert RANK[module] < RANK[path.stem], f"{path.stem} imports {module}, which is not below it"


def test_the_command_line_starts_without_torch():
    code = "import sys, negindex.tools.cli; from click.testing import CliRunner; "
    code += "r = CliRunner().invoke(negindex.tools.cli.main, ['--help']); assert r.exit_code == 0; "
    code += "sys.exit(bool({'torch', 'diffusers', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_collection_needs_no_client_of_an_engine():
    code = "import sys, negindex.collection, negindex.engines.milvus, negindex.engines.push; "
    code += "sys.exit(bool({'pymilvus', 'grpc', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_asking_a_service_needs_none_of_what_serving_needs():
    code = "import sys, negindex.client; sys.exit(bool({'fastapi', 'uvicorn', 'pydantic', 'httpx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
