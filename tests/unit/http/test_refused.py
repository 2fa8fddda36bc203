"""What a request is told and counted as that is refused before its inputs are taken."""

from __future__ import annotations

import pytest

from tests.unit.http.overloaded import MakeServed, occupied


@pytest.mark.parametrize("path", ["/embed", "/"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"inputs": "\\ud800"}', "\\ud800 is half of a character"),
        (b'{"inputs": "a\\uDBFF b"}', "\\uDBFF is half of a character"),
        (b'{"inputs": "a', "Input data was truncated"),
        (b'{"inputs": "\\ud83d\\ude00', "Input data was truncated"),
    ],
)
async def test_a_body_that_is_not_json_says_why(make_served: MakeServed, path: str, body: bytes, said: str) -> None:
    reply = await (await make_served()).client.post(path, content=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error if path == "/embed" else error["message"]).startswith(f"the body is not JSON in UTF-8: {said}")


async def test_failures_are_a_share_of_the_requests(make_served: MakeServed) -> None:
    """Also of requests that are refused before their inputs are counted, and of those with an error after that."""
    served = await make_served(max_client_batch_size=2, max_concurrent_requests=1)
    client = served.client
    assert (await client.get("/none")).status_code == 404
    assert (await client.get("/embed")).status_code == 405
    assert (await client.post("/embed", content=b"{")).status_code == 400
    assert (await client.post("/embed", json={"inputs": [[5], [6], [7]]})).status_code == 422
    for path, body in (("/embed", {"inputs": [[10**6]]}), ("/vertex", {"instances": [{"inputs": [[10**6]]}]})):
        assert (await client.post(path, json=body)).status_code == 422  # there is no such token
    first = await occupied(served)
    assert (await client.post("/embed", json={"inputs": [[6]]})).status_code == 429  # by its head alone
    served.engine.release()
    assert (await first).status_code == 200
    found = dict(line.rsplit(" ", 1) for line in (await client.get("/metrics")).text.splitlines())
    assert found['te_request_count{method="refused"}'] == "5.0"
    assert sum(float(value) for name, value in found.items() if name.startswith("te_request_failure{")) == 7
    assert sum(float(value) for name, value in found.items() if name.startswith("te_request_count{")) == 8
    assert float(found["te_embed_count"]) == 2 + float(found["te_embed_success"])
