"""The bench of engines: one set from memory and through Milvus Lite, with answers that agree."""

from click.testing import CliRunner
from engines import lite  # noqa: F401, skips where it is not installed

from negindex.tools.cli import main


def test_what_the_bench_of_engines_prints(tmp_path, monkeypatch):
    monkeypatch.setattr("negindex.trust._HELD_OUT", 4)
    words = ["bench", "engine", f"milvus://{tmp_path}/engine.db/bench", "--rows", "1100", "--shape", "1,32,32"]
    words += ["--levels", "0.5,10", "--queries", "2", "--keep", str(tmp_path / "sets")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[1].startswith("Milvus Lite ")
    assert "1100 rows × 1,32,32" in lines[1]
    assert [line.split()[0] for line in lines[-4:]] == ["s", "0.5", "10", "near"]
    assert max(float(line.split()[-1]) for line in lines[-3:-1]) < 1e-5
