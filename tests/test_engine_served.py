"""A set that `negindex serve` and `generate` ask through Milvus Lite: right answers, or errors that say why."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler
from engines import alike, delete, lite  # noqa: F401, skips where Milvus Lite is not installed
from mixtures import fresh, rows
from serving import figure, serving
from test_calibrated_set import keys, learned
from test_engines import COUNT, asked, every_set_is_large, file, grown, table_of, template  # noqa: F401
from worlds import ClosedForm

from negindex import Collection, NoiseLevel, RemoteNegatives
from negindex.engines import push
from negindex.engines.address import Address
from negindex.engines.link import Link
from negindex.engines.milvus import MilvusNegatives
from negindex.errors import EngineBehind, InvalidInput, NotThere, Unreachable
from negindex.service.alarms import Bell
from negindex.service.janitor import go_round
from negindex.service.metrics import Metrics
from negindex.service.run import check
from negindex.service.settings import Settings, read_settings, shown
from negindex.tools.cli import main
from negindex.tools.guarding import FREE, Asked

NAME = "claims.set"


@pytest.fixture
def own(template, file, tmp_path, request):  # noqa: F811
    """A set in a folder of its own, and the engine that it was pushed to."""
    col = Collection.open(shutil.copytree(template, tmp_path / "sets" / NAME))
    address = Address.of(f"milvus://{file}/served_{abs(hash(request.node.name))}")
    push.push(col, address)
    return col, address


def ready(url):
    return httpx.get(f"{url}/health/ready", timeout=30).status_code == 200


def test_a_served_set_answers_through_its_engine_or_raises_and_upkeep_brings_it_up(own):
    col, address = own
    root = col.path.parent
    settings = Settings(root=root, engine={NAME: address.text})
    with serving(root, engine=settings.engine) as url, RemoteNegatives(url, NAME, retries=0) as remote:
        alike(asked(remote), asked(col))
        assert ready(url)
        gone = rows(COUNT)[:4]
        col.withdraw(keys(0, 4), "no longer")
        assert not remote.near(gone, radius=0.0).found.any()
        told = remote.posterior(gone.double(), NoiseLevel(1.0, 1e-3))
        assert not torch.isin(told.heaviest.ids, torch.arange(1, 5)).any()
        col.add(gone.numpy(), keys(COUNT, COUNT + 4))
        assert remote.near(gone, radius=0.0).found.all()

        delete(address, table_of(col, address), list(range(10, COUNT, 3)))
        col.withdraw(keys(5, 6), "no longer")
        with pytest.raises(EngineBehind, match="engine push SET milvus"):
            remote.near(fresh()[:1], k=1)
        assert not ready(url)
        text = httpx.get(f"{url}/metrics").text
        assert figure(text, "negindex_unanswered_calls_total") == 1
        go_round(settings, Metrics(), Bell(root, None))
        assert ready(url)
        alike(asked(remote), asked(col))
        assert push.check(col, address).wrong == 0


def test_look_ups_go_on_while_upkeep_makes_the_index_anew(own, monkeypatch):
    col, address = own
    root, before, put = col.path.parent, col.index().file, Link.put

    def slowly(*given, **options):
        time.sleep(3.0)  # in which the service would ask by an index that was on record
        put(*given, **options)

    monkeypatch.setattr(Link, "put", slowly)
    settings = Settings(root=root, engine={NAME: address.text})
    with (
        serving(root, engine=settings.engine) as url,
        RemoteNegatives(url, NAME, retries=0) as remote,
        ThreadPoolExecutor(1) as beside,
    ):
        grown(col)
        asked(remote)
        round_ = beside.submit(go_round, settings, Metrics(), Bell(root, None))
        while not round_.done():
            asked(remote)  # raises where it is not answered
        round_.result()
        assert before != col.index().file
        col.let_go()
        until = time.monotonic() + 60
        while push.status(col)[0].older and time.monotonic() < until:  # until the service has let the old index go
            asked(remote)
            go_round(settings, Metrics(), Bell(root, None))
        assert push.status(col)[0].is_whole
        assert push.status(col)[0].older == ()
        alike(asked(remote), asked(col))
        assert figure(httpx.get(f"{url}/metrics").text, "negindex_unanswered_calls_total") == 0


def test_a_served_set_whose_engine_is_away_raises_and_is_not_ready(own):
    col, _ = own
    engine = {NAME: "milvus://127.0.0.1:9/claims"}
    with serving(col.path.parent, engine=engine, engine_seconds=0.5) as url:
        with (
            RemoteNegatives(url, NAME, retries=0) as remote,
            pytest.raises(Unreachable, match=r"127\.0\.0\.1:9/claims"),
        ):
            asked(remote)
        assert not ready(url)
    assert push.keep_up(col, own[1]) is None


def test_engines_are_settings_and_wrong_ones_are_refused(tmp_path, monkeypatch):
    Collection.create(tmp_path / NAME, (2,), "pixels").close()
    text = "milvus://127.0.0.1:19530/claims"
    (tmp_path / "service.toml").write_text(f'root = "{tmp_path}"\n[engine]\n"{NAME}" = "{text}"\n')
    settings, origins = read_settings({}, tmp_path / "service.toml")
    assert shown(settings, origins)["engine"]["value"] == {NAME: text}
    assert check(settings)
    monkeypatch.setenv("NEGINDEX_ENGINE", f'{{"{NAME}": "nowhere"}}')
    with pytest.raises(InvalidInput, match=r"engine.*no address of an engine"):
        read_settings({})
    with pytest.raises(NotThere, match=r"engine of other\.set"):
        check(Settings(root=tmp_path, engine={"other.set": text}))
    with pytest.raises(InvalidInput, match="one process has open at a time"):
        check(Settings(root=tmp_path, engine={NAME: f"milvus://{tmp_path}/e.db/claims"}))


def options(**given):
    names = ("rule", "radius", "overcompensation", "beta_max", "bandwidth", "strength", "gate", "window", "reference")
    names += ("prior", "timeout", "kernel_floor", "key")
    return {**dict.fromkeys(names), **FREE, "unguarded": False, **given}


@pytest.mark.parametrize("labels", [(), ("first",)])
def test_a_guard_of_the_command_line_asks_through_the_engine(own, labels):
    col, address = own
    given = options(
        negatives=(col.path,), engines=(address.text,), labels=labels, rule="spell", radius=1.0, copies="none"
    )
    read = Asked.read(given)
    pipe = ClosedForm(rows(50, seed=8).double(), DDIMScheduler(clip_sample=False))
    with ExitStack() as stack:
        assert isinstance(read._opened(col.path), MilvusNegatives)
        (guard,) = read.attach(pipe, stack)
        pipe(steps=3)
        assert guard.receipts
    delete(address, table_of(col, address), list(range(1, COUNT, 2)))
    with ExitStack() as stack:
        read.attach(pipe, stack)
        with pytest.raises(EngineBehind):
            pipe(steps=3)
    assert learned().kernel == col.default_kernel


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        (["nowhere"], "give ADDRESS or SET=ADDRESS"),
        (["milvus://h/a"], "of which set"),
        (["c=milvus://h/a"], "not among the sets"),
        (["a=milvus://h/a", "a=milvus://h/b"], "has one already"),
        (["a=milvus://h/9"], "no address of an engine"),
    ],
)
def test_engines_that_do_not_fit_are_refused(engines, said, tmp_path):
    words = ["generate", "model", "--negatives", "a", "--negatives", "b", "--out", str(tmp_path)]
    done = CliRunner().invoke(main, [*words, *(word for one in engines for word in ("--engine", one))])
    assert done.exit_code == 2, done.output
    assert said in done.output
