"""Regimes: what each asks, which ways a claim can go under it, and when its time is up."""

from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from pathlib import Path

import pytest

from negindex.claim_rules import reachable
from negindex.clocks import Span
from negindex.errors import Damaged, InvalidInput, NotThere
from negindex.regimes import LIVE, STATES, regime, regimes

SHIPPED = ["dmca", "dsa", "gdpr-erasure", "hash-only", "in-house", "take-it-down"]
EARLY, LATE = datetime(2026, 1, 5, 15, tzinfo=UTC), datetime(2026, 3, 9, 15, tzinfo=UTC)


# -- the regimes that are shipped --------------------------------------------------------------


def test_the_shipped_regimes_are_listed_and_read():
    assert regimes() == SHIPPED
    assert [regime(name).name for name in SHIPPED] == SHIPPED


WAYS = {  # every way between two states, as words; what is not here is not allowed
    "dmca": """received>incomplete received>accepted received>withdrawn incomplete>received incomplete>accepted
        incomplete>withdrawn accepted>in_force accepted>withdrawn in_force>disputed in_force>withdrawn
        disputed>in_force disputed>stayed disputed>withdrawn stayed>in_force stayed>withdrawn withdrawn>erased""",
    "dsa": """received>incomplete received>accepted received>withdrawn incomplete>received incomplete>accepted
        incomplete>withdrawn accepted>in_force accepted>withdrawn in_force>disputed in_force>withdrawn
        disputed>in_force disputed>stayed disputed>withdrawn stayed>in_force stayed>withdrawn withdrawn>erased""",
    "gdpr-erasure": """received>incomplete received>accepted received>withdrawn incomplete>received
        incomplete>accepted incomplete>withdrawn accepted>in_force accepted>stayed accepted>withdrawn accepted>erased
        in_force>stayed in_force>withdrawn in_force>erased stayed>in_force stayed>withdrawn stayed>erased
        withdrawn>erased""",
    "hash-only": """received>incomplete received>accepted received>withdrawn incomplete>received
        incomplete>accepted incomplete>withdrawn accepted>in_force accepted>withdrawn in_force>withdrawn
        withdrawn>erased""",
    "in-house": """received>accepted received>in_force received>withdrawn accepted>in_force accepted>withdrawn
        accepted>erased in_force>disputed in_force>withdrawn in_force>erased disputed>in_force disputed>withdrawn
        disputed>erased withdrawn>erased""",
    "take-it-down": """received>incomplete received>accepted received>withdrawn incomplete>received
        incomplete>accepted incomplete>withdrawn accepted>in_force accepted>withdrawn in_force>disputed
        in_force>withdrawn disputed>in_force disputed>withdrawn withdrawn>erased""",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_claim_goes_the_ways_of_its_regime_and_no_other(name):
    rules = regime(name)
    allowed = {f"{a}>{b}" for a in STATES for b in STATES if rules.allows(a, b)}
    assert allowed == set(WAYS[name].split())
    assert rules.allows("received", "withdrawn"), "a notice can be turned down"
    assert not any(rules.allows("erased", state) for state in STATES)
    assert set(rules.states) == reachable(rules.transitions) == {s for way in allowed for s in way.split(">")}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_walk_through_a_regime_starts_and_ends_its_clocks_and_leaves_none_running_at_the_end(name):
    """Each walk goes on to the first closed state, without coming twice to the same way."""
    rules = regime(name)
    for walk in walks(rules, "received", set()):
        history = [(state, EARLY + timedelta(hours=i)) for i, state in enumerate(walk)]
        for length in range(1, len(history) + 1):
            clocks = rules.clocks(history[:length])
            for clock in clocks:
                assert clock.started < clock.due
                assert clock.alarm < clock.due
            running = {clock.name for clock in clocks if clock.ended is None}
            assert running == expected(rules, walk[:length]), walk[:length]
        assert walk[-1] == "erased"
        assert not running, "what is over has no deadline"


def walks(rules, state, gone):
    if state == "erased":
        yield ["erased"]
    for then in rules.transitions.get(state, ()):
        if (state, then) not in gone:
            for rest in walks(rules, then, gone | {(state, then)}):
                yield [state, *rest]


def expected(rules, walk):
    """The clocks that run, told from the last state that started or stopped each."""
    running = set()
    for rule in rules.clock_rules:
        marks = ["on" if state in rule.starts else "off" for state in walk if state in rule.starts + rule.ends]
        running |= {rule.name} if marks and marks[-1] == "on" else set()
    return running


@pytest.mark.parametrize("name", SHIPPED)
def test_each_regime_says_what_counsel_decides_and_what_each_field_and_clock_rests_on(name):
    rules = regime(name)
    text = (Path(str(files("negindex"))) / "laws" / f"{name}.toml").read_text(encoding="utf-8")
    assert "Counsel decides" in text.split("\n\n")[0]
    assert len(rules.counsel) > 20
    assert len(rules.digest) == 64
    assert all(field.help.endswith(".") for field in rules.fields)
    assert all(rule.basis.endswith(".") for rule in rules.clock_rules)


def test_only_hashes_are_kept_of_what_is_a_crime_to_hold():
    assert {name: regime(name).storage for name in SHIPPED} == {
        name: "hash-only" if name == "hash-only" else "rows" for name in SHIPPED
    }
    assert [name for name in SHIPPED if regime(name).sweep] == ["hash-only", "take-it-down"]
    assert not any(field.personal for field in regime("hash-only").fields)


def test_a_statement_of_reasons_has_no_personal_data_in_it():
    reasons = [field for field in regime("dsa").fields if "in_force" in field.required_for]
    assert {field.name for field in reasons} == set(DSA_REASONS)
    assert not any(field.personal for field in reasons)


# -- completeness ------------------------------------------------------------------------------

AFFIRMED = {"good_faith": True, "accuracy": "yes", "authority": True}
NOTICE = {
    "signature": "/s/ A. Author",
    "work": "A photograph",
    "material": ["8/0008.png"],
    "contact": "12 Road",
    **AFFIRMED,
}
COUNTER = {
    "counter_signature": "/s/ B",
    "counter_material": "8/0008.png, in the set",
    "counter_perjury": True,
    "counter_contact": "B, 3 Street, 555 0100",
    "counter_jurisdiction": True,
}
DSA_REASONS = {
    "restriction": "removal",
    "territory": "all member states",
    "duration": "until withdrawn",
    "facts": "the image is a copy",
    "origin": "notice",
    "automated_detection": "no",
    "automated_decision": "no",
    "ground": "illegal content",
    "ground_reference": "copyright",
    "ground_explanation": "a copy without licence",
    "redress": "complaint within six months",
}
INTIMATE = {
    "signature": "/s/ C",
    "on_behalf": "self",
    "depiction": "image 7",
    "good_faith": True,
    "circumstances": "never agreed",
    "contact": "c@example.org",
}
PERSON = {"subject": "D", "contact": "d@example.org", "material": "a portrait", "identity": "signed in"}
COMPLETE = [
    ("dmca", "accepted", NOTICE),
    ("dmca", "disputed", COUNTER),
    ("dmca", "stayed", {"suit": "N.D. Cal. 26-cv-1"}),
    ("take-it-down", "accepted", INTIMATE),
    ("take-it-down", "disputed", {"objection": "another person"}),
    ("dsa", "accepted", {"explanation": "a copy", "location": "8/0008.png", "good_faith": True}),
    ("dsa", "in_force", DSA_REASONS),
    ("dsa", "disputed", {"complaint": "licensed"}),
    ("gdpr-erasure", "accepted", PERSON),
    ("gdpr-erasure", "erased", {"ground": "a", "fingerprint": "kept"}),
    ("hash-only", "accepted", {"source": "a hash list"}),
    ("in-house", "in_force", {}),
]


@pytest.mark.parametrize(("name", "stage", "fields"), COMPLETE)
def test_a_document_is_complete_with_all_its_fields_and_each_one_is_missed(name, stage, fields):
    rules = regime(name)
    assert rules.missing(fields, stage) == []
    for field in fields:
        for value in (None, "", "  \n", [], ["given", " "], {"a": 1}):
            assert [gap.name for gap in rules.missing({**fields, field: value}, stage)] == [field]
        assert [gap.name for gap in rules.missing({k: v for k, v in fields.items() if k != field}, stage)] == [field]
    assert [gap.name for gap in rules.missing({}, stage)] == [f.name for f in rules.fields if f.name in fields]


def test_every_requirement_of_every_regime_is_told_above():
    told = {(name, stage, field) for name, stage, fields in COMPLETE for field in fields}
    asked = {(n, stage, field.name) for n in SHIPPED for field in regime(n).fields for stage in field.required_for}
    assert asked == told


@pytest.mark.parametrize(
    ("name", "field", "good", "bad"),
    [
        ("dmca", "good_faith", [True, "yes"], [False, "no", "on", 1, None]),
        ("dmca", "contact_email", ["a.b@example.org"], ["a", "a@b", "a@b c.org", "@b.org", "a@@b.org", "a@b..org", 3]),
        ("dsa", "restriction", ["removal", ["removal", "demotion"]], ["Removal", "other", ["removal", "x"], True]),
        ("hash-only", "sha256", ["0" * 64, ["ab" * 32]], ["0" * 63, "G" * 64, "AB" * 32, ["0" * 64, ""]]),
        ("own", "seen", ["2024-02-29", date(2024, 2, 29)], ["2023-02-29", "29.2.2024", "soon", True]),
    ],
)
def test_a_field_says_what_is_wrong_with_it(own, name, field, good, bad):
    own(fields='[[fields]]\nname = "seen"\nhelp = "When."\ndocument = "notice"\npersonal = false\ncheck = "date"')
    (found,) = [f for f in regime(name, own.folder).fields if f.name == field]
    assert [found.fault(value) for value in good] == [None] * len(good)
    assert all(found.fault(value).startswith("is ") for value in bad)


def test_what_is_of_persons_is_set_apart_and_unknown_fields_are_refused():
    words, person = regime("dmca").apart({**NOTICE, "contact_email": "a@example.org"})
    assert words.keys() == {"work", "material", *AFFIRMED}
    assert person == {"signature": "/s/ A. Author", "contact": "12 Road", "contact_email": "a@example.org"}
    with pytest.raises(InvalidInput, match=r"dmca has no fields \['singature'\]"):
        regime("dmca").apart({"singature": "/s/"})


def test_no_question_about_an_unknown_state_is_answered():
    rules = regime("dmca")
    asks = [
        lambda: rules.allows("recieved", "accepted"),
        lambda: rules.allows("received", "done"),
        lambda: rules.missing({}, "accept"),
        lambda: rules.clocks([("filed", EARLY)]),
    ]
    for ask in asks:
        with pytest.raises(InvalidInput, match="no state of a claim"):
            ask()
    assert set(LIVE) < set(STATES)


# -- an operator's own regimes -----------------------------------------------------------------

OWN = """\
name = "own"
title = "Own"
law = "None."
counsel = "Everything."
storage = "rows"
timezone = "UTC"

[transitions]
received = ["accepted", "withdrawn"]
accepted = ["in_force", "withdrawn"]
in_force = ["withdrawn"]
withdrawn = ["erased"]
"""
FIELD = '[[fields]]\nname = "a"\nhelp = "A."\ndocument = "notice"\npersonal = true\n'
CLOCK = """\
[[clocks]]
name = "act"
basis = "The house."
starts = ["received"]
ends = ["in_force", "withdrawn"]
due = "3 business days"
not_before = "1 business day"
calendar = "US"
alarm = "5 hours"
"""


@pytest.fixture
def own(tmp_path):
    """Writes own.toml: ``own(text, fields=..., clocks=...)``."""

    def write(text=OWN, fields="", clocks="", name="own"):
        (tmp_path / f"{name}.toml").write_text("\n".join([text, fields, clocks]), encoding="utf-8")
        return regime(name, tmp_path)

    write.folder = tmp_path
    return write


def test_an_own_regime_goes_before_a_shipped_one_and_the_others_stay(own):
    assert own(fields=FIELD, clocks=CLOCK).clock_rules[0].not_before == Span(1, "business day")
    mine = own(OWN.replace('"own"', '"dmca"'), name="dmca")
    assert (mine.title, regime("dmca").title == "Own") == ("Own", False)
    assert mine.digest != regime("dmca").digest
    assert regimes(own.folder) == sorted([*SHIPPED, "own"])
    assert regime("dsa", str(own.folder)) == regime("dsa")


@pytest.mark.parametrize("name", ["nothing", "", "../laws/dmca", "DMCA", "dmca.toml", "/dmca"])
def test_an_unknown_regime_is_not_there_and_the_known_ones_are_named(name, tmp_path):
    for folder in (None, tmp_path):
        with pytest.raises(NotThere, match="dmca, dsa, gdpr-erasure"):
            regime(name, folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    for ask in (lambda folder: regime("dmca", folder), regimes):
        with pytest.raises(NotThere, match="none is no folder"):
            ask(tmp_path / "none")


@pytest.mark.parametrize("content", [b"name = ", b'name = "\xff"', b'name = "a"\nname = "b"'])
def test_a_file_that_is_no_toml_is_damaged(tmp_path, content):
    (tmp_path / "own.toml").write_bytes(content)
    with pytest.raises(Damaged, match=r"own\.toml is no TOML"):
        regime("own", tmp_path)


WRONG = [  # what is replaced, by what, and what the error says of the key and the remedy
    ('name = "own"', 'name = "other"', "name is 'other'; .* 'own'"),
    ('title = "Own"', "", "title is missing; add it"),
    ('title = "Own"', 'title = " "', "title is ' '; give a text"),
    ('title = "Own"', "title = 3", "title is 3; give a text"),
    ('title = "Own"', 'title = "Own"\ntitel = "x"', "unknown titel; take it out"),
    ('storage = "rows"', 'storage = "row"', "storage is 'row'; give one of rows, hash-only"),
    ('storage = "rows"', 'storage = "rows"\nsweep = "yes"', "sweep is 'yes'; give true or false"),
    ('timezone = "UTC"', 'timezone = "Brussels"', "timezone: 'Brussels' is no time zone; give one like"),
    ('timezone = "UTC"', 'timezone = "../x"', "timezone: .* is no time zone"),
    ('in_force = ["withdrawn"]', 'in_force = "withdrawn"', "transitions: in_force is 'withdrawn'; give a list"),
    ('in_force = ["withdrawn"]', 'in_force = ["gone"]', "in_force has 'gone'; give different ones of received"),
    ('in_force = ["withdrawn"]', 'in_force = ["withdrawn", "withdrawn"]', "in_force has 'withdrawn'; give different"),
    ('in_force = ["withdrawn"]', 'in_force = ["in_force", "withdrawn"]', "in_force leads to itself"),
    ('in_force = ["withdrawn"]', "", "no way leads from in_force to erased; add one"),
    ('in_force = ["withdrawn"]', 'in_force = ["withdrawn"]\nactive = ["erased"]', "transitions: unknown active"),
    ('in_force = ["withdrawn"]', 'in_force = ["withdrawn"]\nstayed = ["erased"]', "no way leads to stayed"),
    ('in_force = ["withdrawn"]', 'in_force = ["withdrawn"]\nerased = ["received"]', "erased leads to .*; it is final"),
    ("[transitions]", "[ways]", "transitions is missing; add it"),
    ('help = "A."', "", "fields 'a': help is missing"),
    ('document = "notice"', 'document = "letter"', "document is 'letter'; give one of notice, counter-notice"),
    ("personal = true", "", "fields 'a': personal is missing"),
    ("personal = true", 'personal = true\nrequired_for = ["accept"]', "required_for has 'accept'; give .* received"),
    ("personal = true", 'personal = true\nrequired_for = ["disputed"]', "required_for has 'disputed'"),
    ("personal = true", 'personal = true\nrequired_for = ["received"]', "required_for has received; .* later state"),
    ("personal = true", 'personal = true\ncheck = "phone"', "check is 'phone'; give one of affirmed, date"),
    ("personal = true", "personal = true\nchoices = [1]", "choices has 1; give different texts"),
    ("personal = true", "personal = true\nmax = 3", "fields 'a': unknown max"),
    ("personal = true", "personal = true\n" + FIELD, "two fields are called 'a'"),
    (FIELD, "fields = [3]", "transitions: unknown fields"),
    ('starts = ["received"]', "", "clocks 'act': starts is missing"),
    ('starts = ["received"]', "starts = []", "starts is empty; name a state that starts the clock"),
    ('starts = ["received"]', 'starts = ["filed"]', "starts has 'filed'; give different ones of received"),
    ('starts = ["received"]', 'starts = ["disputed"]', "starts has 'disputed'"),
    ('ends = ["in_force", "withdrawn"]', "ends = []", "ends is empty; name a state that stops the clock"),
    ('due = "3 business days"', 'due = "3 weeks"', "clocks 'act': due: '3 weeks' is no span of time"),
    ('due = "3 business days"', "due = 3", "due is 3; give a text"),
    ('due = "3 business days"', 'due = "48 hours"', "not_before is in another unit than due; give it in hours"),
    ('not_before = "1 business day"', 'not_before = "4 business days"', "not_before is later than due"),
    ('alarm = "5 hours"', 'alarm = "1 day"', "alarm is 1 day; give it in hours"),
    ('calendar = "US"', "", 'calendar is missing; add one, such as "US"'),
    ('calendar = "US"', 'calendar = "USA-XX"', "calendar: calendar 'USA-XX' is not known"),
    ('basis = "The house."', "", "clocks 'act': basis is missing"),
]


@pytest.mark.parametrize(("old", "new", "said"), WRONG, ids=[new or f"no {old}" for old, new, _ in WRONG])
def test_a_rule_that_cannot_be_followed_is_named_with_its_file_key_and_remedy(own, old, new, said):
    text = "\n".join([OWN, FIELD, CLOCK])
    assert text.count(old) >= 1
    with pytest.raises(InvalidInput, match=rf"own\.toml: .*{said}"):
        own(text.replace(old, new, 1))


def test_a_list_of_anything_but_tables_is_refused(own):
    with pytest.raises(InvalidInput, match=r"own\.toml: fields\[0\] is 3; make it a table"):
        own(OWN.replace("[transitions]", "fields = [3]\n\n[transitions]"))
