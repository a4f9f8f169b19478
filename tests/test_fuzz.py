"""Schemathesis asks the real service whatever its document allows, and what it does not: it never fails, and says what
it said that it would say.
"""

from collections import Counter

import pytest
import requests
import schemathesis
from fuzzing import bodies, content_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from serving import serving
from small_sets import SHAPE, rows

from negindex import Collection
from negindex.service.access import create_key
from negindex.service.app import make_app
from negindex.service.document import document
from negindex.service.settings import Settings
from negindex.service.wire import MEDIA_TYPE

load_all_checks()
schemathesis.openapi.media_type(MEDIA_TYPE, st.binary(max_size=64))
DOCUMENT = document(make_app(Settings()))
OPERATIONS = [found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()]
EXAMPLES = 25
KNOWN = {"name": "a", "version": 1}
# What arrays have to be to fit a set, no document can say; and a query's unknown names are passed over, as ever.
NOT_HELD_TO = [positive_data_acceptance, negative_data_rejection]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A set with three rows in two versions, a set without rows, and a key of each kind that asks."""
    root = tmp_path_factory.mktemp("served")
    with Collection.create(root / "a", SHAPE, "pixels") as made:
        made.add(rows(3), ["a", "b", "c"], label=["x", "x", "y"])
        made.withdraw(["c"], "a mistake")
    Collection.create(root / "b", SHAPE, "pixels").close()
    keys = {who: create_key(root, [who])[0] for who in ("admin", "sampler")}
    with serving(root, rate=1e6, burst=1e6, strangers=1e6, samples=8) as url, requests.Session() as session:
        yield url, session, keys


@st.composite
def cases(draw, operation):
    """A request to an operation, as its document allows, or not."""
    content = content_of(operation.definition.raw)
    wrong = draw(st.integers(0, 1 if content is None else 5)) == 0  # in path or query, or without a key
    mode = GenerationMode.NEGATIVE if wrong else GenerationMode.POSITIVE
    known = {one.name: KNOWN[one.name] for one in operation.path_parameters if draw(st.integers(0, 3))}
    if content is None and mode == GenerationMode.NEGATIVE and not (operation.path_parameters or operation.query):
        mode = GenerationMode.POSITIVE  # nothing about it can be wrong
    case = draw(operation.as_strategy(mode, path_parameters=known or None))
    if content is not None and draw(st.integers(0, 9)):
        case.body, case.media_type = draw(bodies(content)), MEDIA_TYPE
    return case


@pytest.mark.parametrize("who", ["admin", "sampler"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.label)
def test_no_question_makes_the_service_fail_or_answer_otherwise_than_documented(service, operation, who):
    url, session, keys = service
    seen = Counter()

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=[*HealthCheck]
    )
    @given(cases(operation))
    def ask(case):
        told = case.call_and_validate(
            base_url=url, session=session, headers={"Authorization": f"Bearer {keys[who]}"},
            excluded_checks=NOT_HELD_TO,
        )  # fmt: skip
        seen[told.status_code] += 1

    ask()
    roles = operation.definition.raw["x-roles"]
    assert seen[200] if who in roles or roles == ["anybody"] else seen[403] and not seen[200], seen
    if content_of(operation.definition.raw) is not None and who in roles:
        assert sum(seen[status] for status in (400, 409, 413, 415, 422)), seen


def test_the_document_names_only_what_it_holds():
    """Every operation has its problems, and no answer is of a kind that FastAPI made up."""
    for path, methods in DOCUMENT["paths"].items():
        for said in methods.values():
            answers = said["responses"]
            assert {"422", "500", "503"} <= answers.keys(), path
            for status, answer in answers.items():
                wanted = 1 if status != "200" else len(answer["content"])
                assert len(answer["content"]) == wanted == 1, (path, status)
                assert status == "200" or list(answer["content"]) == ["application/problem+json"]
    assert list(DOCUMENT["components"]["schemas"]) == ["Problem"]
    assert list(DOCUMENT["components"]["securitySchemes"]) == ["key"]
