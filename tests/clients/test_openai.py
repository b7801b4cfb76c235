"""The client against a server that fails in every usual way."""

import json

import pytest

pytest.importorskip("openai", reason="comes with the extra naysay[api]")

from clients.fake_server import serving
from naysay.clients.openai import ChatClient, ChatReply, ChatRequest
from naysay.errors import ConfigError, ServerError, StorageError


def request(text: str) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": text},), 20)


def ask(client: ChatClient, *texts: str) -> list[ChatReply]:
    found: dict[int, ChatReply] = {}
    client.ask([request(text) for text in texts], found.__setitem__)
    return [found[i] for i in range(len(texts))]


def test_answers_in_order_with_their_tokens_and_bounded_concurrency() -> None:
    with serving(lambda question, _: question.upper()) as server:
        replies = ask(ChatClient(server.url, "m", concurrency=3), *(f"q{i}" for i in range(12)))
    assert [reply.text for reply in replies] == [f"Q{i}" for i in range(12)]
    assert {(reply.prompt_tokens, reply.completion_tokens) for reply in replies} == {(10, 3)}
    assert server.most_at_once <= 3
    assert {row["model"] for row in server.seen} == {"m"}
    assert {row["temperature"] for row in server.seen} == {0.0}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_failures_are_retried(status: int) -> None:
    with serving(lambda question, before: "fine" if before == 2 else (status, "{}")) as server:
        assert ask(ChatClient(server.url, "m", retries=3), "q")[0].text == "fine"
    assert len(server.seen) == 3


def test_what_goes_on_failing_is_one_line_and_what_was_answered_was_handed_on() -> None:
    found: dict[int, ChatReply] = {}
    with serving(
        lambda question, _: "fine" if question == "good" else (500, '{"error": {"message": "boom"}}')
    ) as server:
        client = ChatClient(server.url, "m", retries=1, concurrency=1)
        with pytest.raises(ServerError, match=r"status 500: .*boom.*answers so far are kept") as error:
            client.ask([request("good"), request("bad")], found.__setitem__)
    assert "\n" not in str(error.value)
    assert server.url in str(error.value)
    assert found[0].text == "fine"


@pytest.mark.parametrize(
    ("status", "fix"), [(401, "set the environment variable TEST_KEY to a valid key"), (404, "check base_url")]
)
def test_a_wrong_key_or_address_is_not_retried_and_says_what_to_do(
    status: int, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "secret-1")
    with serving(lambda question, _: (status, "{}")) as server, pytest.raises(ServerError, match=fix) as error:
        ask(ChatClient(server.url, "m", key_env="TEST_KEY"), "q")
    assert len(server.seen) == 1
    assert server.keys == {"Bearer secret-1"}
    assert "secret-1" not in str(error.value)


def test_a_request_that_the_server_refuses_stops_no_other() -> None:
    with serving(
        lambda question, _: "fine" if question == "ok" else (400, '{"error": {"message": "too long"}}')
    ) as server:
        good, bad = ask(ChatClient(server.url, "m"), "ok", "long")
    assert good.text == "fine"
    assert bad.refused.startswith("status 400")
    assert "too long" in bad.refused


ODD_BODIES = [
    "no JSON at all {",
    "{}",
    "[]",
    '"text"',
    "null",
    '{"choices": []}',
    '{"choices": [{}]}',
    '{"choices": [null]}',
    '{"choices": "abc"}',
    '{"choices": {"a": 1}}',
    '{"choices": [{"message": null}]}',
    '{"choices": [{"message": {"content": 5}}]}',
    '{"choices": [{"message": {"content": [{"type": "text", "text": "x"}]}}]}',
    '{"choices": ' + "[" * 100_000,
]


@pytest.mark.parametrize("body", ODD_BODIES)
def test_an_answer_that_is_no_completion_is_said_to_be_none(body: str) -> None:
    with serving(lambda question, _: (200, body)) as server:
        reply = ask(ChatClient(server.url, "m", retries=0), "q")[0]
    assert reply.text == ""
    assert reply.refused.startswith("not a chat completion: ")


@pytest.mark.parametrize("tokens", ['"x"', "1e400", "-3", "true", "null", "[]"])
def test_a_count_of_tokens_that_is_none_costs_nothing(tokens: str) -> None:
    usage = f'{{"prompt_tokens": {tokens}, "completion_tokens": 7}}'
    with serving(
        lambda question, _: (200, f'{{"choices": [{{"message": {{"content": "ok"}}}}], "usage": {usage}}}')
    ) as server:
        assert ask(ChatClient(server.url, "m", retries=0), "q") == [ChatReply("ok", "", 0, 7)]


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    with serving(lambda question, _: "so \ud800") as server:
        text = ask(ChatClient(server.url, "m"), "q")[0].text
    assert text == "so ?"
    text.encode("utf-8")


def test_what_a_reply_breaks_is_raised_as_it_is() -> None:
    def full(index: int, reply: ChatReply) -> None:
        raise StorageError(28, "log.jsonl: the disk is full")

    with serving(lambda question, _: "fine") as server, pytest.raises(StorageError, match="the disk is full"):
        ChatClient(server.url, "m", concurrency=1).ask([request("a"), request("b")], full)


def test_a_model_with_the_newer_name_of_the_limit_is_asked_with_that() -> None:
    """OpenAI's own words; the name is kept once it was taken."""
    refusal = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    with serving(lambda question, _: "unused") as server:
        server.answer = lambda question, _: (
            (400, json.dumps({"error": {"message": refusal}})) if "max_tokens" in server.seen[-1] else "fine"
        )
        replies = ask(ChatClient(server.url, "m", concurrency=1), "a", "b", "c")
    assert [reply.text for reply in replies] == ["fine"] * 3
    assert len(server.seen) == 4
    assert [row.get("max_completion_tokens") for row in server.seen] == [None, 20, 20, 20]


def test_a_server_that_knows_neither_name_says_so_for_each_request() -> None:
    with serving(lambda question, _: (400, '{"error": {"message": "Unsupported parameter: max_tokens"}}')) as server:
        reply = ask(ChatClient(server.url, "m"), "a")[0]
    assert (reply.status, reply.text) == (400, "")
    assert "Unsupported parameter" in reply.refused


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "http://",
        "http://localhost:80a/v1",
        "https://[::1/v1",
        "http://exa mple/v1",
        "ftp://localhost/v1",
        "http://localhost:99999/v1",
        "http://user:s3cret@localhost/v1",
        "http://s3cret@localhost/v1",
        "http://localhost/v1?key=s3cret",
        "http://localhost/v1#s3cret",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_and_no_secret_is_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url: expected") as error:
        ChatClient(url, "m")
    assert "s3cret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ServerError, match=r"http://127.0.0.1:9/v1: no answer .* check base_url"):
        ask(ChatClient("http://127.0.0.1:9/v1", "m", retries=0), "q")


def test_a_key_comes_from_the_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment variable TEST_KEY is not set"):
        ChatClient("http://127.0.0.1:9/v1", "m", key_env="TEST_KEY")


@pytest.mark.parametrize("key", ["  sk-1 \n", "sk-1\r\n"])
def test_space_around_a_key_is_no_part_of_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", key)
    with serving(lambda question, _: "fine") as server:
        ask(ChatClient(server.url, "m", key_env="TEST_KEY", retries=0), "q")
    assert server.keys == {"Bearer sk-1"}


@pytest.mark.parametrize("key", ["schlüssel", "sk\n1", "sk\x071"])
def test_a_key_that_no_header_can_hold_is_one_line_without_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(ConfigError, match="the environment variable TEST_KEY, found others") as error:
        ChatClient("http://127.0.0.1:9/v1", "m", key_env="TEST_KEY")
    assert key not in str(error.value)
    monkeypatch.setenv("TEST_KEY", " \n")
    with pytest.raises(ConfigError, match="TEST_KEY is not set"):
        ChatClient("http://127.0.0.1:9/v1", "m", key_env="TEST_KEY")


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt -e '\.\[api\]'"):
        ChatClient("http://127.0.0.1:9/v1", "m")
