"""Claims on the command line.

What the compliance officer does, step by step; the options follow from it:
 1. A notice comes by mail. `claim regimes dmca --document notice > notice.toml` gives the form, to be filled in.
 2. `claim open SET --regime dmca --fields notice.toml IMAGES --dry-run` says which rows the images are like, and what
    is missing; the same without --dry-run takes the claim in, and prints its number and the clocks.
 3. What is missing is asked for, and put in with `claim amend SET N --fields more.toml`.
 4. Found good: `claim accept SET N --by ben`. From then on samplers obey.
 5. Each morning `claim due SET --within 2d --check` (cron mails when it exits with 3), and `claim list SET`.
 6. A counter-notice comes: `claim dispute SET N --fields counter.toml`. The rows stay; the clock says from when until
    when they must be put back: `claim withdraw SET N` then, `claim stay` on a suit, `claim uphold` to keep them.
 7. Somebody asks for erasure: `claim erase SET N`; processes that hold the bytes still are named.
 8. Court order: `claim hold SET N --by ann`, and again --by another person. `claim release` likewise.
 9. Asked what was in force in May: `status --at`, `log`, `diff` (test_history_cli.py).
"""

import json
import os
import pty
import re
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from test_claims import COUNTER, NOTICE

from negindex import Collection
from negindex.keys import Key
from negindex.regimes import regime, regimes
from negindex.tools.cli import main

USAGE, PENDING, NOT_THERE, NOT_ALLOWED = 2, 3, 10, 12


def run(*words, stdin=None, env=None):
    return CliRunner(env=env).invoke(main, [str(word) for word in words], input=stdin)


def picture(path, seed, side=64):
    """A smooth image, as photographs are, so that its PDQ hash says something."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return path


def form(path, fields):
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items()))
    return path


@pytest.fixture
def made(tmp_path):
    """Rows 0.png to 2.png in force at version 1."""
    (tmp_path / "old").mkdir()
    for i in range(3):
        picture(tmp_path / "old" / f"{i}.png", seed=i)
    assert run("build", tmp_path / "a.set", tmp_path / "old", "--size", 16).exit_code == 0
    return tmp_path / "a.set"


@pytest.fixture
def notice(tmp_path):
    return form(tmp_path / "notice.toml", NOTICE)


@pytest.fixture
def image(tmp_path):
    return picture(tmp_path / "n.png", seed=9)


@pytest.fixture
def claim(made, notice, image):
    """Claim 2, received, on n.png."""
    assert run("claim", "open", made, image, "--regime", "dmca", "--fields", notice, "--by", "ann").exit_code == 0
    return made


def test_a_claim_goes_from_the_notice_to_the_erasure(claim, tmp_path):
    assert "n.png" not in Collection.open(claim).source_keys()
    steps = [
        (["accept"], "claim 2 in_force (dmca), 4 rows in force (1 in, 0 out)"),
        (["dispute", "--fields", form(tmp_path / "counter.toml", COUNTER)], "claim 2 disputed (dmca), 4 rows"),
        (["stay", "--field", "suit=docket 7"], "claim 2 stayed"),
        (["uphold"], "claim 2 in_force"),
        (["withdraw", "--reason", "settled"], "claim 2 withdrawn (dmca), 3 rows in force (0 in, 1 out)"),
        (["erase", "--yes"], "claim 2 erased"),
    ]
    for (step, *words), said in steps:
        done = run("claim", step, claim, 2, *words, "--by", "ben")
        assert done.exit_code == 0, done.output
        assert said in done.stdout
    collection = Collection.open(claim)
    assert [record.action for record in collection.log()[2:]] == [
        *("open", "accept", "force", "dispute", "stay", "uphold", "withdraw", "erase")
    ]
    assert collection.claims.claimant(2) == {}


def test_open_prints_number_state_what_is_missing_with_help_and_clocks(made, image, tmp_path):
    some = form(tmp_path / "some.toml", {"signature": "Jane Roe", "good_faith": "no"})
    done = run("claim", "open", made, image, "--regime", "dmca", "--fields", some)
    assert done.exit_code == 0
    assert "version 2, claim 2 incomplete (dmca)" in done.stdout
    assert "work is absent (The copyrighted work" in done.stdout
    assert 'good_faith is not affirmed: true or "yes" (Affirmed: a good-faith belief' in done.stdout
    rest = form(tmp_path / "rest.toml", NOTICE)
    done = run("claim", "amend", made, 2, "--fields", rest)
    assert "claim 2 received" in done.stdout
    due = Collection.open(made).claims.show(2).clocks[-1].due
    assert f"take down: due {due.isoformat(timespec='seconds')}, in " in done.stdout


def test_the_form_of_every_regime_reads_back_as_nothing_told():
    for name in regimes():
        printed = run("claim", "regimes", name).stdout
        read = tomllib.loads(printed)
        assert list(read) == [field.name for field in regime(name).fields]
        assert all(field.help in printed for field in regime(name).fields)
    assert list(tomllib.loads(run("claim", "regimes", "dmca", "--document", "counter-notice").stdout)) == list(COUNTER)
    assert all(name in run("claim", "regimes").stdout for name in regimes())
    assert run("claim", "regimes", "nothing").exit_code == NOT_THERE


def test_a_set_s_own_regimes_are_listed_and_used(made):
    (made / "regimes").mkdir()
    own = (Path(regime.__code__.co_filename).parent / "laws" / "in-house.toml").read_text()
    (made / "regimes" / "house.toml").write_text(own.replace('name = "in-house"', 'name = "house"'))
    assert "house " in run("claim", "regimes", "--set", made).stdout
    assert "reason = " in run("claim", "regimes", "house", "--set", made).stdout
    assert run("claim", "open", made, "--regime", "house", "--key-of", "old/0.png").exit_code == 0


def test_what_is_left_empty_in_a_form_is_not_told(made, image, tmp_path):
    blank = form(tmp_path / "blank.toml", {**NOTICE, "contact_email": "", "work": "  "})
    done = run("claim", "open", made, image, "--regime", "dmca", "--fields", blank)
    assert "work is absent" in done.stdout
    assert Collection.open(made).claims.claimant(2).keys() == {"signature", "contact"}


def test_fields_come_as_json_and_from_stdin_too(made, image):
    words = ["claim", "open", made, image, "--regime", "dmca", "--fields", "-"]
    assert "received" in run(*words, stdin=json.dumps(NOTICE)).stdout
    assert Collection.open(made).claims.claimant(2)["signature"] == "Jane Roe"


def test_personal_fields_are_refused_on_the_command_line_and_not_repeated(made, image):
    done = run("claim", "open", made, image, "--regime", "dmca", "--field", "signature=Jane Roe", "--field", "work=x")
    assert done.exit_code == USAGE
    assert "--fields" in done.stderr
    assert "signature is personal" in done.stderr
    assert "Jane" not in done.output
    assert len(Collection.open(made).versions()) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wrk = 'x'", r"has no fields \['wrk'\]; it has .*'work'"),
        ("work = 1.5", "work is a float; give a text"),
        ("work = ", "neither TOML nor JSON"),
        ("{work", "neither TOML nor JSON"),
        ("work = '\udcff'", "neither TOML nor JSON"),
    ],
)
def test_a_form_that_cannot_be_used_is_named_and_changes_nothing(made, image, tmp_path, text, said):
    file = tmp_path / "f.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    done = run("claim", "open", made, image, "--regime", "dmca", "--fields", file)
    assert (done.exit_code, len(Collection.open(made).versions())) == (USAGE, 2)
    assert re.search(said, done.stderr)
    assert run("claim", "open", made, image, "--regime", "dmca", "--fields", tmp_path / "no").exit_code == NOT_THERE


def test_a_told_value_that_will_not_do_is_named_though_the_field_is_not_required(made, image, tmp_path):
    odd = form(tmp_path / "odd.toml", {**NOTICE, "contact_email": "jane at example"})
    done = run("claim", "open", made, image, "--regime", "dmca", "--fields", odd)
    assert done.exit_code == 0
    assert "contact_email is not an e-mail address" in done.stderr
    assert "jane at" not in done.output


def test_a_dry_run_says_what_is_like_the_files_and_changes_nothing(made, notice, tmp_path):
    near = picture(tmp_path / "copy.png", seed=1, side=96)
    words = ["claim", "open", made, near, "--regime", "dmca", "--fields", notice]
    before = Collection.open(made).versions()
    done = run(*words, "--dry-run")
    assert done.exit_code == 0
    assert re.search(r"copy\.png +old/1\.png +2 +\d+ +pdq +yes", done.stderr)
    assert done.stdout.split() == ["copy.png"]
    said = json.loads(run(*words, "--dry-run", "--json").stdout)
    assert (said["rows"], said["missing"]) == (["copy.png"], {})
    assert said["similar"]["in_set"][0]["source_key"] == "old/1.png"
    assert Collection.open(made).versions() == before


def test_with_similar_the_rows_that_the_files_are_like_come_under_the_claim(made, notice, tmp_path):
    near = picture(tmp_path / "copy.png", seed=1, side=96)
    words = ["claim", "open", made, near, "--regime", "dmca", "--fields", notice, "--with-similar"]
    done = run(*words, "--key-of", "old/2.png")
    assert done.exit_code == 0, done.output
    collection = Collection.open(made)
    assert set(collection.claims.show(2).rows.values()) == {"copy.png", "old/1.png", "old/2.png"}
    assert len(collection.versions()) == 3, "one change, one version"
    digests = Collection.open(made).digests()
    assert len(digests) == 3, "rows that were there are there once"
    run("claim", "accept", made, 2)
    assert run("withdraw", made, "old/1.png", "--reason", "r").exit_code == NOT_ALLOWED


def test_a_file_that_cannot_become_a_row_is_named_and_no_claim_is_opened(made, notice, image, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    done = run("claim", "open", made, image, tmp_path / "bad.png", "--regime", "dmca", "--fields", notice)
    assert done.exit_code == USAGE
    assert "bad.png" in done.stderr
    assert len(Collection.open(made).versions()) == 2


def test_a_key_that_is_taken_goes_under_a_prefix(claim, notice, tmp_path):
    (tmp_path / "second").mkdir()
    other = picture(tmp_path / "second" / "n.png", seed=20)
    words = ["claim", "open", claim, other, "--regime", "dmca", "--fields", notice]
    assert run(*words).exit_code == USAGE
    assert run(*words, "--prefix", "notice-3/").exit_code == 0
    assert list(Collection.open(claim).claims.show(3).rows.values()) == ["notice-3/n.png"]


def test_hash_only_material_is_not_even_read(made, tmp_path):
    missing = tmp_path / "never-read.png"
    words = ["claim", "open", made, "--regime", "hash-only", "--field", "source=a list"]
    done = run(*words, missing)
    assert done.exit_code == NOT_ALLOWED
    assert "--hash" in done.stderr
    assert run(*words, "--hash", "sha256:" + "ab" * 32).exit_code == 0
    assert Collection.open(made).claims.show(2).hashes == [("sha256", "ab" * 32)]
    assert run(*words, "--hash", "md5:00").exit_code == USAGE


def test_attach_puts_images_under_a_live_claim_in_force_at_once(claim, tmp_path):
    run("claim", "accept", claim, 2)
    more = picture(tmp_path / "more.png", seed=30)
    assert "(1 in, 0 out)" in run("claim", "attach", claim, 2, more).stdout
    assert "more.png" in Collection.open(claim).source_keys()


def test_steps_that_miss_fields_or_are_not_allowed_say_so_and_change_nothing(claim):
    run("claim", "accept", claim, 2)
    before = Collection.open(claim).versions()
    done = run("claim", "dispute", claim, 2)
    assert done.exit_code == USAGE
    assert "counter_signature is absent" in done.stderr
    assert run("claim", "stay", claim, 2, "--field", "suit=x").exit_code == NOT_ALLOWED
    assert run("claim", "accept", claim, 99).exit_code == NOT_THERE
    assert run("claim", "amend", claim, 2).exit_code == USAGE
    assert Collection.open(claim).versions() == before


def test_a_withdrawal_is_not_too_early_unless_it_is_said(claim, tmp_path):
    run("claim", "accept", claim, 2)
    done = run("claim", "dispute", claim, 2, "--fields", form(tmp_path / "c.toml", COUNTER))
    assert re.search(r"put back: due \S+, in [12]\d d \d+ h, not before \S+", done.stdout)
    assert run("claim", "withdraw", claim, 2).exit_code == NOT_ALLOWED
    assert run("claim", "withdraw", claim, 2, "--early").exit_code == 0


def test_rows_that_other_claims_name_stay_and_are_counted(made, notice):
    words = ["claim", "open", made, "--regime", "dmca", "--fields", notice]
    run(*words, "--key-of", "old/0.png")
    run("claim", "accept", made, 2)
    done = run("claim", "withdraw", made, 2)
    assert "3 rows in force (0 in, 0 out)" in done.stdout
    assert "1 of its 1 rows stay in force: other claims name them" in done.stdout


def test_due_lists_the_urgent_first_and_check_tells_cron(claim, notice, image, monkeypatch):
    run("claim", "open", claim, "--regime", "take-it-down", "--key-of", "old/0.png")  # incomplete: no clock
    listed = run("claim", "due", claim)
    assert listed.exit_code == 0
    assert re.search(r"2 +dmca +received +take down +due ", listed.stdout)
    assert run("claim", "due", claim, "--check").exit_code == 0
    assert json.loads(run("claim", "due", claim, "--within", "1h", "--json").stdout) == []
    (one,) = json.loads(run("claim", "due", claim, "--within", "30d", "--json").stdout)
    assert (one["claim"], one["clock"]["status"]) == (2, "running")
    assert run("claim", "due", claim, "--within", "soon").exit_code == USAGE

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=30)

    monkeypatch.setattr("negindex.tools.claim_read.datetime", Later)
    late = run("claim", "due", claim, "--check")
    assert late.exit_code == PENDING
    assert re.search(r"OVERDUE by 2\d d", late.stdout)


def test_list_chooses_by_state_and_regime(claim):
    assert [line.split()[:3] for line in run("claim", "list", claim).stdout.splitlines()[1:]] == [
        ["1", "in-house", "in_force"],
        ["2", "dmca", "received"],
    ]
    (one,) = json.loads(run("claim", "list", claim, "--state", "received", "--json").stdout)
    assert (one["claim"], one["next_due"]["clock"]["name"]) == (2, "take down")
    assert json.loads(run("claim", "list", claim, "--regime", "dsa", "--json").stdout) == []
    assert run("claim", "list", claim, "--regime", "dmac").exit_code == NOT_THERE


def test_a_hold_needs_two_people_by_name(claim):
    assert run("claim", "hold", claim, 2).exit_code == USAGE
    assert "legal hold asked" in run("claim", "hold", claim, 2, "--by", "ann", "--reason", "order").stdout
    assert run("claim", "hold", claim, 2, "--by", "ann").exit_code == NOT_ALLOWED
    assert "legal hold held" in run("claim", "hold", claim, 2, env={"NEGINDEX_BY": "ben"}).stdout
    run("claim", "withdraw", claim, 2)
    assert run("claim", "erase", claim, 2, "--yes").exit_code == NOT_ALLOWED
    for person in ("ben", "ann"):
        assert run("claim", "release", claim, 2, "--by", person).exit_code == 0
    assert run("claim", "erase", claim, 2, "--yes").exit_code == 0


def test_erase_asks_and_is_refused_where_nobody_can_be_asked(claim):
    run("claim", "withdraw", claim, 2)
    before = Collection.open(claim).versions()
    assert run("claim", "erase", claim, 2).exit_code == USAGE
    dry = run("claim", "erase", claim, 2, "--dry-run")
    assert dry.stdout.split() == ["4", "n.png"]
    assert Collection.open(claim).versions() == before


def test_erase_on_a_terminal_goes_on_with_yes_alone(claim, monkeypatch, capsys):
    run("claim", "withdraw", claim, 2)
    for answer, ends in (("n", click.Abort), ("y", SystemExit)):
        ours, theirs = pty.openpty()
        os.write(ours, answer.encode() + b"\n")
        with open(ours, "rb"), open(theirs) as terminal:
            monkeypatch.setattr("sys.stdin", terminal)
            with pytest.raises(ends):
                main(["claim", "erase", str(claim), "2"], standalone_mode=ends is SystemExit)
        assert "Erase claim 2 and its 1 rows" in capsys.readouterr().err
    assert Collection.open(claim).claims.show(2).state == "erased"


def test_an_erasure_that_a_reader_holds_up_is_pending_and_names_the_process(claim):
    run("claim", "accept", claim, 2)
    held = Collection.open(claim).snapshot()
    run("claim", "withdraw", claim, 2)
    done = run("claim", "erase", claim, 2, "--yes")
    assert done.exit_code == PENDING
    assert f"held by process {os.getpid()}" in done.stderr
    said = json.loads(run("status", claim, "--json").stdout)
    assert [one["what"] for one in said["outstanding"]] == ["file"]
    assert said["outstanding"][0]["holders"][0]["pid"] == os.getpid()
    assert "outstanding: file" in run("status", claim).stdout
    del held
    assert json.loads(run("status", claim, "--json").stdout)["outstanding"] == []


def test_keep_out_is_chosen_at_the_erasure(claim, image):
    run("claim", "withdraw", claim, 2)
    assert run("claim", "erase", claim, 2, "--keep-out", "--yes").exit_code == 0
    done = run("claim", "open", claim, image, "--regime", "dmca")
    assert done.exit_code == NOT_ALLOWED
    assert "n.png" in done.stderr


def test_the_key_signs_what_is_changed(claim, tmp_path):
    key = Key.new()
    key.save(tmp_path / "k")
    run("claim", "accept", claim, 2, "--key", tmp_path / "k")
    assert Collection.open(claim).checkpoint().is_signed_by(key.public)
    run("claim", "withdraw", claim, 2, env={"NEGINDEX_KEY": str(tmp_path / "k")})
    assert Collection.open(claim).checkpoint().is_signed_by(key.public)


def test_json_says_what_the_library_says(claim):
    said = json.loads(run("claim", "show", claim, 2, "--json").stdout)
    found = Collection.open(claim).claims.show(2)
    assert (said["claim"], said["state"], said["regime"]) == (2, found.state, found.regime)
    assert said["rows"] == [{"id": 4, "source_key": "n.png"}]
    assert said["fields"] == found.fields
    assert [event["action"] for event in said["history"]] == ["open"]
    assert said["clocks"][0]["due"] == found.clocks[0].due.isoformat()
    done = json.loads(run("claim", "accept", claim, 2, "--json").stdout)
    assert (done["version"], done["state"], done["first_in_force"]) == (4, "in_force", 3)


def test_text_from_a_claimant_cannot_write_to_the_terminal(made, image, tmp_path):
    odd = form(tmp_path / "odd.toml", {**NOTICE, "work": "a\u001b[2Jb\nc"})
    run("claim", "open", made, image, "--regime", "dmca", "--fields", odd)
    shown = run("claim", "show", made, 2).stdout
    assert "\x1b" not in shown
    assert "work: a [2Jb c" in shown


# -- what is told of persons is shown on demand alone -----------------------------------------

CANARY = "kanarienvogel"


def told(name):
    """Every field of a regime, those of persons with a canary, and values that will do."""
    fine = {"affirmed": "yes", "date": "2026-05-19", "email": "a@b.example", "sha256": "ab" * 32}
    said = {f.name: f.choices[0] if f.choices else fine.get(f.check, f"some {f.name}") for f in regime(name).fields}
    for field in regime(name).fields:
        if field.personal and not field.choices:
            said[field.name] = f"{CANARY}@{field.name}.example" if field.check == "email" else f"{CANARY} {field.name}"
    return said


@pytest.mark.parametrize("name", regimes())
def test_nothing_but_show_claimant_prints_what_is_told_of_persons(made, image, tmp_path, name):
    fields = form(tmp_path / "all.toml", told(name))
    subject = ["--hash", "sha256:" + "ab" * 32] if name == "hash-only" else [image]
    steps = [
        ["claim", "open", made, *subject, "--regime", name, "--fields", fields, "--dry-run"],
        ["claim", "open", made, *subject, "--regime", name, "--fields", fields],
        ["claim", "amend", made, 2, "--fields", fields],
        *(["claim", step, made, 2, "--fields", fields] for step in ("accept", "dispute", "stay", "uphold")),
        *(["claim", "hold", made, 2, "--by", person] for person in ("ann", "ben")),
        *(["claim", "release", made, 2, "--by", person] for person in ("ann", "ben")),
    ]
    looks = [
        ["claim", "show", made, 2],
        ["claim", "show", made, 2, "--json"],
        *(["claim", what, made, *form] for what in ("list", "due") for form in ([], ["--json"])),
        *([what, made, *form] for what in ("status", "log") for form in ([], ["--json"])),
        ["status", made, "--at", 2],
        ["diff", made, 0, 2],
        ["diff", made, 0, 2, "--json"],
        ["report", "statement", made, 2],
        ["report", "summary", made, "--month", f"{datetime.now(UTC):%Y-%m}", "--json"],
        ["checkpoint", made],
        ["verify", made],
        ["similar", made],
        ["erase", made, "n.png", "--reason", "r", "--dry-run"],
        ["withdraw", made, "n.png", "--reason", "r", "--dry-run"],
    ]
    ends = [["claim", "withdraw", made, 2, "--fields", fields, "--early"], ["claim", "erase", made, 2, "--dry-run"]]
    before_erasure = [*steps, *looks, *ends, ["compact", made]]
    done = {tuple(words): run(*words) for words in before_erasure}
    assert all(done[tuple(words)].exit_code == 0 for words in [*steps[:4], *looks[:11]])
    assert not any(one.exception and one.exit_code == 1 for one in done.values())
    shown = run("claim", "show", made, 2, "--claimant")
    if any(field.personal for field in regime(name).fields):
        assert CANARY in shown.stdout
        assert "personal data" in shown.stderr
        assert CANARY not in shown.stderr
    assert [words for words, one in done.items() if CANARY in one.output] == []
    ended = [run(*words) for words in (["claim", "erase", made, 2, "--yes"], *looks)]
    assert ended[0].exit_code == 0, ended[0].output
    assert CANARY not in "".join(done.output for done in ended)
    assert CANARY not in run("claim", "show", made, 2, "--claimant").output


def test_times_that_are_printed_are_utc(claim):
    due = run("claim", "due", claim).stdout.split("due ")[-1].split(",")[0]
    assert datetime.fromisoformat(due).utcoffset() == datetime.now(UTC).utcoffset()
