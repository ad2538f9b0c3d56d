"""HTTP gives what Python gives, refuses what is malformed, and never mixes up answers."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from servers import ITEMS, LIMITS, Client, serving

from slmrec import Recommender
from slmrec.serving import messages
from slmrec.serving.http.head import AllowedHosts

HISTORIES = st.lists(st.sampled_from([*ITEMS, "nope", "never"]), max_size=LIMITS.max_history)


@pytest.fixture(scope="module")
def recommender(student: Path) -> Recommender:
    return Recommender.from_pretrained(student)


@st.composite
def queries(draw: st.DrawFn) -> dict[str, Any]:
    query: dict[str, Any] = {
        "history": draw(HISTORIES),
        "k": draw(st.integers(1, 50)),
        "filter_seen": draw(st.booleans()),
    }
    candidates = draw(st.none() | st.lists(st.sampled_from(ITEMS), max_size=12))
    return query if candidates is None else query | {"candidates": candidates}


def expected(recommender: Recommender, query: dict[str, Any]) -> list[dict[str, Any]]:
    options = {name: query[name] for name in ("k", "filter_seen", "candidates") if name in query}
    return recommender.recommend([query["history"]], **options).table.drop_columns("user_id").to_pylist()


def assert_same(answer: dict[str, Any], wanted: list[dict[str, Any]]) -> None:
    assert [item["item_id"] for item in answer["items"]] == [item["item_id"] for item in wanted]
    assert [item["rank"] for item in answer["items"]] == [item["rank"] for item in wanted]
    assert [item["score"] for item in answer["items"]] == pytest.approx([item["score"] for item in wanted], abs=1e-4)


@given(st.lists(queries(), min_size=1, max_size=LIMITS.max_requests))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_http_gives_what_python_gives(client: Client, recommender: Recommender, asked: list[dict[str, Any]]) -> None:
    together = client.recommend(requests=asked)["answers"]
    alone = client.recommend(**asked[0])
    for query, answer in zip([*asked, asked[0]], [*together, alone], strict=True):
        assert_same(answer, expected(recommender, query))
        unknown = [item for item in query["history"] if item not in ITEMS]
        assert answer["unknown_items"] == list(map(str, unknown))
        share = len(unknown) / len(query["history"]) if query["history"] else 0
        assert answer["unknown_share"] == pytest.approx(share, abs=1e-4)
        assert answer["fallback"] == (len(unknown) == len(query["history"]))
        assert answer["session"] is None


def test_excluded_items_are_left_out(client: Client) -> None:
    before = [item["item_id"] for item in client.recommend(history=["i01"], k=10)["items"]]
    after = client.recommend(history=["i01"], k=10, exclude=[before[0], before[4], "nope"])
    assert [item["item_id"] for item in after["items"]][:8] == [item for item in before if item not in before[:5:4]]
    fewer = client.recommend(history=["i01"], candidates=before[:3], exclude=before[:1])
    assert [item["item_id"] for item in fewer["items"]] == before[1:3]


def test_every_answer_belongs_to_its_request(client: Client, recommender: Recommender) -> None:
    histories = [[ITEMS[n], ITEMS[(3 * n + 1) % 40]] for n in range(40)]
    wanted = [expected(recommender, {"history": history}) for history in histories]

    def ask(number: int) -> None:
        assert_same(client.recommend(history=histories[number % 40]), wanted[number % 40])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(160)))
    sizes = [line for line in client.get("/metrics").splitlines() if line.startswith("slmrec_batch_histories_")]
    total = {line.split("{")[0]: float(line.split()[-1]) for line in sizes if 'model="student"' in line}
    assert total["slmrec_batch_histories_sum"] > total["slmrec_batch_histories_count"]  # some were computed together


def test_the_teacher_answers_for_itself(client: Client) -> None:
    status, _, answer = client.ask("/recommend?model=teacher", {"history": ["i01"]})
    assert (status, answer["model"]) == (200, "teacher")
    student = client.recommend(history=["i01"])
    assert student["model"] == "student" and student["items"] != answer["items"]
    assert student["model_version"] != answer["model_version"]


def test_answers_are_as_the_document_says(client: Client) -> None:
    names = {"/model": "Models", "/items?q=red": "Items", "/examples": "ExampleUsers", "/health": "Status"}
    for path, name in (names | {"/ready": "Status"}).items():
        TypeAdapter(getattr(messages, name)).validate_python(client.get(path))
    messages.Answer.model_validate(client.recommend(history=["i01"]))
    messages.Answers.model_validate(client.recommend(requests=[{"history": ["i01"]}, {"session_id": "s"}]))
    document = client.get("/openapi.json")
    assert document["openapi"].startswith("3.1")
    text = json.dumps(document)
    assert all(f"#/components/schemas/{name}" in text for name in ("Query", "Answer", "Error"))
    assert set(document["components"]["schemas"]) >= {
        reference.split('"')[0] for reference in text.split("#/components/schemas/")[1:]
    }


def test_what_is_loaded(client: Client, student: Path) -> None:
    told = client.get("/model")["student"]
    assert (told["num_items"], told["metrics"], told["name"]) == (40, {"valid/ndcg@10": 0.25}, "tiny student")
    assert told["version"] == told["fingerprint"][:12] == client.recommend(history=["i01"])["model_version"]


def test_titles_are_found_by_words_in_any_order(client: Client) -> None:
    found = client.get("/items?q=BLUE+number+12")["items"]
    assert found == [{"item_id": "i12", "title": "Thing number 12 in blue"}]
    assert [item["item_id"] for item in client.get("/items?q=i07")["items"]] == ["i07"]
    assert client.get("/items?q=purple")["items"] == []
    assert len(client.get("/items?q=thing&limit=7")["items"]) == 7
    assert len(client.get("/items")["items"]) == 10
    for limit, message in (("0", "should be greater than or equal to 1"), ("many", "should be a valid integer")):
        status, _, content = client.ask(f"/items?limit={limit}")
        assert status == 422 and content["error"].startswith(f"limit: Input {message}")
        assert content["error"].endswith(f", got '{limit}'")


def test_example_users_come_with_titles(client: Client) -> None:
    (user,) = client.get("/examples")["users"]
    assert user["user_id"] == "ann"
    assert [item["title"] for item in user["history"]] == ["Thing number 1 in red", "Thing number 2 in blue"]


QUERY = {"history": ["i01"]}


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("{", 400, "Invalid JSON"),
        (b"\xff", 400, "Invalid JSON"),
        ({}, 422, "give history, or session_id with events"),
        ({"events": ["i01"]}, 422, "give history, or session_id with events"),
        (QUERY | {"session_id": "s", "events": []}, 422, "not both"),
        (QUERY | {"k": 0}, 422, "k: Input should be greater than or equal to 1"),
        (QUERY | {"k": 51}, 422, "k: Input should be less than or equal to 50"),
        (QUERY | {"k": "10"}, 422, "k: Input should be a valid integer"),
        (QUERY | {"user": 1}, 422, "user: Extra inputs are not permitted"),
        ({"history": "i01"}, 422, "history: Input should be a valid array"),
        ({"history": ["i01", None]}, 422, "history[1]: expected an item id"),
        ({"history": [1.5]}, 422, "history[0]: expected an item id: text of 1 to 256 characters, or a whole number"),
        ({"history": [True]}, 422, "history[0]: expected an item id"),
        ({"history": ["x" * 257]}, 422, "history[0]: expected an item id"),
        ({"history": [2**64]}, 422, "history[0]: expected an item id"),
        ({"history": [2.0**60]}, 422, "history[0]: expected an item id"),
        ({"history": ["i01", "NA"]}, 422, "history[1] is 'NA': expected an id"),
        ({"requests": [{"history": ["[1, 2]"]}]}, 422, "history[0] is '[1, 2]': a list or an object, expected one id"),
        ({"history": ["i01"], "exclude": [" "]}, 422, "exclude[0] is ' ': expected an id"),
        ({"history": ["i01"] * 21}, 422, "history: List should have at most 20 items"),
        (
            QUERY | {"candidates": ["i01", "nope"]},
            422,
            "candidates: 'nope' is not in the catalogue (1 unknown",
        ),
        (QUERY | {"candidates": ["i01"] * 31}, 422, "candidates: List should have at most 30 items"),
        ({"requests": []}, 422, "requests: List should have at least 1 item"),
        ({"requests": [QUERY] * 9}, 422, "requests: List should have at most 8 items"),
        ({"requests": [QUERY, {"k": 1}]}, 422, "requests[1]: give history"),
        ({"requests": [QUERY, QUERY | {"candidates": ["no"]}]}, 422, "requests[1].candidates: 'no' is not in"),
        ([QUERY], 422, "Input should be an object"),
        ({"history": ["i01"], "exclude": ["x" * 200] * 200}, 413, "more than 20000 bytes"),
    ],
)
def test_what_is_wrong_is_refused_with_the_reason(client: Client, body: Any, status: int, told: str) -> None:
    got, _, content = client.ask("/recommend", body)
    assert (got, list(content)) == (status, ["error"])
    assert told in content["error"] and "\n" not in content["error"]


def test_wrong_addresses_methods_and_types_are_refused(client: Client) -> None:
    assert client.ask("/nowhere")[::2] == (404, {"error": "GET /nowhere: Not Found"})
    status, headers, _ = client.ask("/recommend")
    assert (status, headers["allow"]) == (405, "POST")
    assert client.ask("/recommend", json.dumps(QUERY), **{"Content-Type": "text/plain"})[0] == 415
    assert client.ask("/recommend?model=other", QUERY)[::2] == (
        *(422, {"error": "model is 'other', expected student or teacher"}),
    )


def test_a_body_without_length_is_counted(client: Client) -> None:
    chunks = (b" " * 5000 for _ in range(10))
    status, _, content = client.ask("/recommend", chunks, method="POST", **{"Content-Type": "application/json"})
    assert (status, content["error"]) == (413, "the body has more than 20000 bytes; send fewer histories per request")


def test_a_token_is_asked_for(student: Path) -> None:
    with serving(student, token="secret") as client:
        assert client.recommend(**QUERY)["items"]
        for token in (None, "wrong", "secret "):
            client.token = token
            for path, body in (("/recommend", QUERY), ("/reload", {}), ("/model", None), ("/metrics", None)):
                status, headers, content = client.ask(path, body)
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert content["error"].startswith("the token is missing or wrong")
        assert [client.ask(path)[0] for path in ("/", "/docs", "/health", "/ready", "/openapi.json")] == [200] * 5
        assert client.ask("/recommend?model=teacher", QUERY, Authorization="Bearer secret")[::2] == (
            *(422, {"error": "model is 'teacher', expected student; start the server with --teacher DIR"}),
        )


def test_what_happens_is_counted(student: Path) -> None:
    with serving(student) as client:
        client.recommend(history=["nope"])
        client.recommend(session_id="s", events=["i01"])
        client.ask("/recommend", {})
        lines = client.get("/metrics").splitlines()
    assert 'slmrec_requests_total{path="/recommend",status="200"} 2.0' in lines
    assert 'slmrec_requests_total{path="/recommend",status="422"} 1.0' in lines
    assert "slmrec_unknown_items_total 1.0" in lines and "slmrec_fallback_answers_total 1.0" in lines
    assert 'slmrec_sessions{model="student"} 1.0' in lines and "slmrec_waiting_histories 0.0" in lines


def test_the_documentation_page_needs_no_other_host(client: Client) -> None:
    status, headers, page = client.ask("/docs")
    assert status == 200 and "swagger-ui-bundle.js" in page and '"validatorUrl": null' in page
    assert re.findall(r"(?:https?:)?//[\w.-]+", page) == []
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "http" not in policy
    sources = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(sources) == 3
    for source in sources:
        assert client.ask(source, method="HEAD")[0] == 200
    assert client.ask("/docs/assets/../../app.py")[0] == 404


def test_documented_examples_are_valid(client: Client) -> None:
    body = client.get("/openapi.json")["paths"]["/recommend"]["post"]["requestBody"]["content"]["application/json"]
    assert len(body["examples"]) == 3
    for example in body["examples"].values():
        status, _, content = client.ask("/recommend", example["value"])
        assert status == 200
        assert not any(answer["fallback"] for answer in content.get("answers", [content]))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST.:80", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("shop.localhost", 200),
        ("evil.example", 421),
        ("evil.example:80", 421),
        ("localhost.evil.example", 421),
        ("10.0.0.7", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
        ("a\x85b", 421),
    ],
)
def test_requests_for_another_host_are_refused(client: Client, host: str, status: int) -> None:
    for path, body in (("/recommend", QUERY), ("/health", None), ("/", None)):
        got, _, content = client.ask(path, body, Host=host)
        assert got == status
        if status != 200:
            assert "for which this server does not answer" in content["error"] and "\n" not in content["error"]


def test_further_hosts_are_allowed() -> None:
    hosts = AllowedHosts("0.0.0.0", ["Shop.Example."])
    assert [hosts.allows(host) for host in ("shop.example", "10.0.0.7:80", "[2001:db8::1]", "evil.example")] == [
        *(True, True, True, False),
    ]
    assert hosts.allows(gethostname()) and AllowedHosts("reco.internal").allows("reco.internal:80")
    assert AllowedHosts("127.0.0.1", ["*"]).allows("evil.example")


def test_a_redirect_does_not_repeat_the_host(student: Path) -> None:
    with serving(student, token="secret") as client:
        for path in ("/health", "/docs", "/recommend"):
            status, headers, _ = client.ask(f"{path}/", Host="evil.example")
            assert (status, headers["location"]) == (307, path)
        assert client.ask("/recommend/?model=student")[1]["location"] == "/recommend?model=student"
        for path in ("//evil.example/", "/nowhere/", "/%5cevil.example/"):
            assert client.ask(path)[0] == 404


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/recommend?modle=teacher", "modle: unknown query parameter, expected model"),
        ("/recommend?model=teacher&model=student", "model: the query parameter is given 2 times, expected once"),
        ("/recommend?model=", "model is '', expected student or teacher"),
        ("/health?verbose", "verbose: unknown query parameter, expected none"),
        ("/metrics?a%0Ab=1", "a b: unknown query parameter, expected none"),
        ("/items?limt=5", "limt: unknown query parameter, expected q or limit or id"),
        ("/items?id=i01&q=red", "q: the parameter has no effect together with id"),
        ("/items?id=%20", "id: ' ': "),
        ("/items?id=nan", "id: 'nan': "),
        ("/items?id=", "id[0]: String should have at least 1 character, got ''"),
        ("/items?limit=5&limit=6", "limit: the query parameter is given 2 times, expected once"),
        ("/items?q=%ff", "q: the value is not valid text in UTF-8"),
        ("/items?q=" + "a" * 201, "q: String should have at most 200 characters, got"),
        *((f"/items?limit={given}", "limit: Input should be a valid integer, got") for given in ("5.0", "+5", "%205")),
        *(
            (f"/items?limit={given}", "limit: Input should be a valid integer, got")
            for given in ("05", "1_0", "", "5e0")
        ),
    ],
)
def test_query_parameters_are_as_strict_as_bodies(client: Client, path: str, message: str) -> None:
    status, _, content = client.ask(path, QUERY if path.startswith("/recommend") else None)
    assert (status, list(content)) == (422, ["error"])
    assert content["error"].startswith(message) and "\n" not in content["error"]


def test_items_are_found_by_their_ids(client: Client) -> None:
    found = client.get("/items?id=i12&id=nope&id=i03")
    assert [item["item_id"] for item in found["items"]] == ["i12", "i03"] and not found["similar"]


@pytest.mark.parametrize(
    "typed", ["thng number 12", "thimg number 12", "tihng number 12", "thiing number 12", "thing nomber 12"]
)
def test_one_typing_error_is_forgiven(client: Client, typed: str) -> None:
    found = client.get(f"/items?q={typed.replace(' ', '+')}")
    assert ([item["item_id"] for item in found["items"]], found["similar"]) == (["i12"], True)


@pytest.mark.parametrize("typed", ["thg number 12", "thng nomber 12", "i99", "number 99", "rad", "zzzz"])
def test_more_errors_and_other_ids_are_not_forgiven(client: Client, typed: str) -> None:
    assert client.get(f"/items?q={typed.replace(' ', '+')}") == {"items": [], "similar": False}


def test_documented_examples_name_the_server(client: Client) -> None:
    description = client.get("/openapi.json")["paths"]["/recommend"]["post"]["description"]
    assert f"http://127.0.0.1:{client.port}/recommend" in description
    assert "curl -H 'Content-Type: application/json' -d '{\"history\": [\"i" in description
    code = description.split("```python\n")[1].split("```")[0]
    compile(code, "example", "exec")
