"""The HTTP interface: what is filled, for many at once, and who is refused."""

from __future__ import annotations

import json
import queue
import random
import re
import shlex
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import generate_samples
from generation.requests import FillRequest, RequestDone, TokenDrawn
from generation.sampling import DecodingSettings
from tests.helpers.small_models import PROMPTS, WORDS
from training.arguments import parse_settings

pytest.importorskip("starlette", reason="the extra web is not installed")

LONG = {"text": "w1 [MASK] " * 10 + "w2", "out_seq_length": 64, "min_tgt_length": 60}  # seconds of work


def test_an_answer_as_a_whole(server):
    settings = DecodingSettings(max_length=6, num_beams=3)
    [expected] = server.filler.fill([PROMPTS[2]], settings=settings)
    answer = server.fill(PROMPTS[2], num_beams=3, out_seq_length=6)
    assert answer["text"] == expected.text
    assert answer["answers"] == list(expected.answers)
    assert answer["stopped"] is None
    assert [blank["mask"] for blank in answer["blanks"]] == ["[sMASK]", "[MASK]", "[MASK]"]
    for blank, text, ids in zip(answer["blanks"], expected.answers, expected.pieces):
        first, *others = blank["candidates"]
        assert (first["text"], first["ids"]) == (text, list(ids)) and len(others) == 2
        for one in (first, *others):
            assert "".join(token["text"] for token in one["tokens"]) == one["text"]
            assert 0 < one["probability"] < 1 and len(one["tokens"]) == len(one["ids"])


def test_a_stream_tells_the_same(server):
    for fields in ({"num_beams": 3}, {"samples": 3, "temperature": 0.8, "seed": 5}, {"top_k": 1}):
        fields["out_seq_length"] = 5
        whole, messages = server.fill(PROMPTS[4], **fields), server.stream(PROMPTS[4], **fields)
        first, last = messages[0], messages[-1]
        assert first | {"type": "start", "texts": ["w1 ", " ", " w2"], "masks": ["[MASK]", "[MASK]"]} == first
        assert last == {name: whole[name] for name in ("type", "text", "answers", "stopped", "command")}
        told = [message for message in messages if message["type"] == "candidate"]
        for message in told:
            told_whole = whole["blanks"][message["blank"]]["candidates"][message["candidate"]]
            assert message.items() >= told_whole.items()
            tokens = [
                one for one in messages
                if one["type"] == "token" and all(one[key] == message[key] for key in ("blank", "candidate"))
            ]  # fmt: skip
            if "num_beams" not in fields:
                assert [token["id"] for token in tokens] == message["ids"]
                assert "".join(token["text"] for token in tokens) == message["text"]
        assert len(told) == 2 * fields.get("samples", fields.get("num_beams", 1))


def test_the_command_line_is_the_same(server, monkeypatch):
    answer = server.fill(PROMPTS[2], samples=2, temperature=0.8, top_k=12, top_p=0.9, seed=3, out_seq_length=7)
    python, program, *words = shlex.split(answer["command"])
    assert (python, program, *words[:2]) == ("python", "generate_samples.py", "--load-pretrained", "my model")
    settings = parse_settings(generate_samples.SampleSettings, ["--block-lm", *words], environment={})
    [filled] = server.filler.fill(
        list(settings.files.prompt),
        settings=generate_samples.decoding_settings(settings),
        seed=settings.run.seed,
    )
    assert filled.text == answer["text"]


def test_what_was_chosen_stays(server):
    """A candidate that is given, and the beginning of the next one."""
    whole = server.fill(PROMPTS[2], num_beams=3, out_seq_length=6)
    second = whole["blanks"][0]["candidates"][1]["ids"]
    start, *messages = server.stream(PROMPTS[2], num_beams=3, out_seq_length=6, given=[second], prefix=[7])
    assert start["prefix"] == "w7"
    assert messages[-1]["answers"][0] == WORDS.decode(second)
    assert messages[-1]["answers"][1].split()[0] == "w7"
    assert {message["blank"] for message in messages[:-1]} == {1, 2}


def test_fifty_clients_at_once(server):
    """Each gets what it would get alone."""
    generator = random.Random(1)
    ways = [{"num_beams": 2}, {"samples": 2, "temperature": 0.7}, {"top_k": 1}, {"top_p": 0.5, "samples": 3}]
    asked = []
    for number in range(50):
        words = [f"w{generator.randrange(50)}" for _ in range(generator.randrange(1, 12))]
        words.insert(generator.randrange(len(words)), "[MASK]")
        asked.append({"text": " ".join(words), "seed": number, "out_seq_length": 4, **ways[number % 4]})
    alone = [server.fill(**fields) for fields in asked[:8]]
    barrier = threading.Barrier(50)

    def client(fields):
        barrier.wait()
        return server.fill(**fields)["text"] if fields["seed"] % 2 else server.stream(**fields)[-1]["text"]

    with ThreadPoolExecutor(50) as pool:
        texts = list(pool.map(client, asked))
    assert texts[:8] == [answer["text"] for answer in alone]
    for fields, text in zip(asked, texts):
        settings = {"max_length": 4} | {
            k: v for k, v in fields.items() if k in ("num_beams", "temperature", "top_k", "top_p")
        }
        [filled] = server.filler.fill([fields["text"]], settings=DecodingSettings(**settings), seed=fields["seed"])
        assert text == filled.text
    server.wait_until_idle()


def test_requests_of_several_users_share_a_batch(server):
    service, told = server.service, queue.Queue()
    inputs = server.filler.encode("w1 [MASK]", settings=DecodingSettings(max_length=5))
    settings = [DecodingSettings(max_length=5, min_length=5, temperature=t) for t in (0.5, 1.0)]
    asked = [FillRequest(inputs, settings[number % 2], seed=number) for number in range(6)]
    with service.changed:  # the thread takes none before all are there
        for request in asked:
            service.submit(request, told.put)
    events = [told.get(timeout=60) for _ in range(6 * 7)]
    drawn = [event.request for event in events if isinstance(event, TokenDrawn)]
    assert drawn == asked * 5  # token by token, one of each


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("way", [{"samples": 4}, {"num_beams": 4}])
def test_an_abandoned_request_computes_no_more(server, stream: bool, way):
    body = json.dumps({**LONG, **way, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /api/fill HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        while not server.service.working:
            time.sleep(0.001)
        [work] = server.service.working.values()
        tell, heard = work.listen, []
        work.listen = lambda event: (heard.append(event), tell(event))
    server.wait_until_idle()
    assert not any(isinstance(event, RequestDone) for event in heard)
    assert not server.service.filler.searches and not server.service.filler.owners
    assert server.fill("w1 [MASK]", out_seq_length=2)["stopped"] is None


def test_a_request_that_does_not_come(server, monkeypatch):
    monkeypatch.setattr("generation.web.app.BODY_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /api/fill HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_limits(server_with):
    with server_with(queue=1, seconds=0.3, body=2000, cache_tokens=2500, blanks=10, candidates=4) as server:

        def refused(status: int, code: str, part: str, **fields) -> None:
            response = server.ask("POST", "/api/fill", fields)
            told = json.loads(response.text)
            assert (response.status, told["type"], told["code"]) == (status, "error", code), told
            assert part in told["message"]

        refused(413, "too_large", "at most 2000 bytes", text="w1 [MASK] " * 250)
        assert server.ask("POST", "/api/fill", iter([b"x" * 1000] * 3)).status == 413  # without its length
        refused(400, "request", "11 blanks; at most 10", text="[MASK]" + " [MASK]" * 10)
        refused(400, "request", "num_beams is 5; at least 1 and at most 4", text="[MASK]", num_beams=5)
        refused(400, "request", "samples is 9", text="[MASK]", samples=9)
        refused(400, "request", "out_seq_length is 65", text="[MASK]", out_seq_length=65)
        refused(400, "request", "room for 4 times", text="[MASK] " * 10, num_beams=4, out_seq_length=64)
        refused(400, "request", "shorten the prompt", text="w1 " * 70 + "[MASK]")
        refused(400, "request", "token ids from 0 to 57", text="[MASK] [MASK]", given=[[58]])
        refused(400, "request", "did you mean 'temperature'", text="[MASK]", temprature=1)
        refused(400, "request", "'checkpoint'", text="[MASK]", checkpoint="/etc/passwd")
        refused(400, "request", "no 'text'")
        assert "not valid JSON" in server.ask("POST", "/api/fill", b"{").text
        assert "half of a surrogate" in server.ask("POST", "/api/fill", b'{"text": "\\ud800 [MASK]"}').text
        assert "nested too deeply" in server.ask("POST", "/api/fill", b"[" * 1999).text

        with ThreadPoolExecutor(8) as pool:  # one at work, one that waits
            answers = list(pool.map(lambda _: server.ask("POST", "/api/fill", {**LONG, "samples": 2}), range(8)))
        statuses = sorted(answer.status for answer in answers)
        assert set(statuses) == {200, 503}
        busy = next(answer for answer in answers if answer.status == 503)
        assert busy.getheader("Retry-After") and json.loads(busy.text)["code"] == "busy"
        for answer in (json.loads(answer.text) for answer in answers if answer.status == 200):
            assert answer["stopped"] == "time" and len(answer["answers"]) == 10
        server.wait_until_idle()


def test_who_may_ask(server):
    for host in ("127.0.0.1", f"localhost:{server.port}", "[::1]:80", "192.168.1.7", "Words.example"):
        assert server.ask("GET", "/api/model", Host=host).status == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "a@localhost", "localhost:x"):
        assert server.ask("GET", "/api/model", Host=host).status in (400, 421), host
    own = f"127.0.0.1:{server.port}"
    body = {"text": "w1 [MASK]", "out_seq_length": 1}
    for origin, status in (
        (f"http://{own}", 200), (f"https://{own}", 200), ("http://evil.example", 403), ("null", 403),
        (f"http://{own}.evil.example", 403), ("http://127.0.0.1:1", 403), ("http://[", 403),
    ):  # fmt: skip
        assert server.ask("POST", "/api/fill", body, Host=own, Origin=origin).status == status, origin
    assert server.ask("POST", "/api/fill", body, **{"Content-Type": "text/plain"}).status == 415
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert b" 200 " not in connection.recv(100)


def test_headers_and_paths(server):
    page = server.ask("GET", "/")
    policy = page.getheader("Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert len(re.findall("'sha256-", policy)) == 2
    for path in ("/", "/api/model", "/nothing"):
        response = server.ask("GET", path)
        assert response.getheader("X-Content-Type-Options") == "nosniff"
        assert response.getheader("Content-Security-Policy").startswith("default-src 'none'")
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.html", "/api/model/../../etc/passwd"):
        assert server.ask("GET", path).status == 404
    assert server.ask("GET", "/api/fill").status == 405
    model = json.loads(server.ask("GET", "/api/model").text)
    assert model["masks"] == ["[MASK]", "[sMASK]", "[gMASK]"] and model["limits"]["candidates"] == 8


def test_a_fault_of_the_model_is_told_and_the_next_request_served(server):
    weight = server.filler.model.word_embeddings.weight
    kept = weight[3].clone()
    try:
        weight.data[3] = float("nan")
        for stream in (False, True):
            response = server.ask("POST", "/api/fill", {"text": "w3 [MASK]", "stream": stream})
            told = json.loads(response.text.splitlines()[-1])
            assert told["code"] == "failed" and "NaN" in told["message"]
    finally:
        weight.data[3] = kept
    assert server.fill("w3 [MASK]")["stopped"] is None
