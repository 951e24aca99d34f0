"""Requests that a page from elsewhere, a stranger or a fuzzer could send."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.neuronscope.server.running import running

from neuronscope.server import Settings, create_app
from neuronscope.server.guard import HEADERS, Guard
from tracker.errors import ConfigError

pytest.importorskip("fastapi")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(tmp_path_factory.mktemp("attacked"), "digits-vit") as client:
        client.get("/api/models/current")
        yield client


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:1", "127.0.0.1.evil.example:80", ""])
def test_another_name_for_the_server_is_refused(api: httpx.Client, host: str) -> None:
    """DNS rebinding: a page's own name may lead to 127.0.0.1."""
    for path in ("/", "/api/models"):
        answer = api.get(path, headers={"Host": host})
        assert answer.status_code == 403 or (host == "" and answer.status_code == 400)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_from_elsewhere_changes_nothing(api: httpx.Client, headers: dict[str, str]) -> None:
    before = api.get("/api/selections").json()
    for method, path in (("POST", "/api/selections"), ("DELETE", "/api/jobs/x"), ("PUT", "/api/selections/x")):
        answer = api.request(method, path, json={"name": "x", "neurons": []}, headers=headers)
        assert answer.status_code == 403
        assert answer.json().keys() == {"error", "details"}
    assert api.get("/api/selections").json() == before
    own = f"http://{api.base_url.host}:{api.base_url.port}"
    fine = {"Origin": own, "Sec-Fetch-Site": "same-origin"}
    assert api.post("/api/selections", json={"name": "x", "neurons": []}, headers=fine).status_code == 201


def test_no_page_from_elsewhere_may_read(api: httpx.Client) -> None:
    answer = api.options("/api/models", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    for path in ("/", "/api/models", "/api/nothing", "/api/neurons.bin?metric=score"):
        headers = api.get(path).headers
        for name, value in HEADERS.items():
            assert headers[name] == value, (path, name)


NAMES = [
    "../../etc/passwd",
    "..",
    "/etc",
    "made/../registered",
    "made/..",
    "module:callable",
    "os:system",
    "tests",
    ".",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_paths_and_no_code(api: httpx.Client, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("switch", "load"):
        assert api.post(f"/api/models/{path}", json={"model_name": name}).status_code == 404
    assert api.post("/api/compare", json={"models": [name]}).status_code == 404
    assert api.post("/api/finetune/jobs", json={"model_name": name}).status_code == 404
    assert api.get("/api/models").json()["current_model"] == "digits-vit"


@pytest.mark.parametrize("path", ["exports", "downloads", "report"])
@pytest.mark.parametrize("name", ["..%2f..%2fneuronscope.sqlite", "%2e%2e", "neuronscope.sqlite", "....", "a%00b"])
def test_files_are_named_by_ids_alone(api: httpx.Client, path: str, name: str) -> None:
    answer = api.get(f"/api/{path}/{name}")
    assert answer.status_code == 404
    assert b"SQLite" not in answer.content


def test_large_bodies_are_refused_whether_they_say_so_or_not(api: httpx.Client) -> None:
    large = json.dumps({"name": "x" * 3_000_000, "neurons": []})
    answer = api.post("/api/selections", content=large, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "2000000 bytes" in answer.json()["error"]
    many = api.post(
        "/api/pruning/batch-analysis",
        json={"pruning_candidates": [{"layer_index": 0, "neuron_index": 0}] * 5001, "input_texts": ["a"]},
    )
    assert many.status_code == 422
    assert "5000" in many.json()["error"]

    async def chunked() -> tuple[int, int]:
        """The same without a Content-Length, as it may come in pieces."""
        read, sent = 0, []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal read
            while True:
                message = await receive()
                read += len(message["body"])

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"127.0.0.1:8765")]}
        await Guard(app, Settings(max_body_bytes=10_000))(scope, receive, send)
        return sent[0]["status"], read

    assert asyncio.run(chunked()) == (413, 10_000)


def test_text_comes_back_as_text(api: httpx.Client) -> None:
    hostile = "<script>alert(1)</script>‮\U0001f600 ' OR 1=1; DROP TABLE selections; --"
    made = api.post("/api/selections", json={"name": hostile, "neurons": [[0, 1]]})
    assert made.json()["name"] == hostile
    assert made.headers["content-type"] == "application/json"
    assert hostile in [one["name"] for one in api.get("/api/selections").json()["selections"]]
    for bad in ("a\x00b", "a\nb", ""):
        assert api.post("/api/selections", json={"name": bad, "neurons": []}).status_code == 422


def test_others_need_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0"):
        create_app(Settings(host="0.0.0.0", folder=tmp_path))  # noqa: S104 (that is what is refused)
    with running(tmp_path, "digits-vit", token="s3cret") as api:  # noqa: S106
        assert api.get("/api/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cre"}):
            answer = api.get("/api/models", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert api.get("/api/models", headers={"Authorization": "Bearer s3cret"}).status_code == 200
