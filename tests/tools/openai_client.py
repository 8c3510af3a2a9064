"""Drives a daemon with OpenAI's own Python client: python openai_client.py http://127.0.0.1:8899/v1

Checks shapes, never wording, so that any model will do. Ends with 0 and "ok", or with a traceback.
"""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="unused", max_retries=0)
MODEL = client.models.list().data[0].id
HELLO = [{"role": "user", "content": "Deploy of billing-api failed at 14:05."}]
SCHEMA = {
    "type": "object",
    "properties": {"gist": {"type": "string", "maxLength": 20}, "n": {"type": "integer"}},
    "required": ["gist", "n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "recall", "description": "Looks things up.", "parameters": SCHEMA}}


def chat(**fields):
    return client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=60, **fields)


def models():
    assert client.models.retrieve(MODEL).id == MODEL
    try:
        client.models.retrieve("no-such-model")
        raise AssertionError("an unknown model was found")
    except openai.NotFoundError:
        pass


def plain_chat():
    answer = chat(n=2, seed=1, temperature=0.5, logprobs=True, top_logprobs=2, logit_bias={"5": -100})
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.finish_reason in ("stop", "length") and isinstance(choice.message.content, str)
        for token in choice.logprobs.content:
            assert token.logprob <= 0 and len(token.top_logprobs) <= 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def stream():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == chat().choices[0].message.content
    assert chunks[-1].usage.total_tokens > 0 and not chunks[-1].choices


def json_schema():
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
    choice = chat(response_format=form, extra_body={"confidence": True}).choices[0]
    answer = json.loads(choice.message.content)
    assert isinstance(answer["gist"], str) and isinstance(answer["n"], int)
    assert list(choice.confidence) == ["gist", "n"]
    assert all(0 <= field["min"] <= field["mean"] <= 1 for field in choice.confidence.values())


def tools():
    for choice in ("required", {"type": "function", "function": {"name": "recall"}}):
        answer = chat(tools=[TOOL], tool_choice=choice).choices[0]
        call = answer.message.tool_calls[0]
        assert call.function.name == "recall" and answer.message.content is None
        assert isinstance(json.loads(call.function.arguments)["n"], int)
    streamed = [chunk.choices[0].delta.tool_calls for chunk in chat(tools=[TOOL], tool_choice="required", stream=True)]
    call = next(calls[0] for calls in streamed if calls)
    assert call.function.name == "recall" and json.loads(call.function.arguments)
    told = HELLO + [
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "recall", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "nothing"},
    ]
    assert client.chat.completions.create(model=MODEL, messages=told, tools=[TOOL], max_tokens=20).choices


def text_completion():
    answer = client.completions.create(model=MODEL, prompt=["one", "two"], max_tokens=5, echo=True)
    assert len(answer.choices) == 2 and answer.choices[1].text.startswith("two")
    likely = client.completions.create(model=MODEL, prompt="one", max_tokens=5, logprobs=2).choices[0].logprobs
    assert len(likely.tokens) == len(likely.token_logprobs) == len(likely.text_offset)


def embeddings():
    # The client asks for base64 unless told otherwise.
    coded = client.embeddings.create(model=MODEL, input=["one", "two words"])
    plain = client.embeddings.create(model=MODEL, input=["one", "two words"], encoding_format="float")
    for a, b in zip(coded.data, plain.data, strict=True):
        assert len(a.embedding) == len(b.embedding)
        assert all(abs(x - y) < 1e-6 for x, y in zip(a.embedding, b.embedding))
        assert abs(sum(x * x for x in b.embedding) - 1) < 1e-3


def errors():
    for fields, param in (
        ({"n": 99}, "n"),
        ({"temperature": 9}, "temperature"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"extra_body": {"mirostat": 2}}, "mirostat"),
    ):
        try:
            chat(**fields)
            raise AssertionError(f"{fields} was accepted")
        except openai.BadRequestError as error:
            assert error.param == param and param in error.message, error
    try:
        client.embeddings.create(model=MODEL, input="one", dimensions=3)
        raise AssertionError("3 dimensions were accepted")
    except openai.BadRequestError as error:
        assert error.param == "dimensions", error


for check in (models, plain_chat, stream, json_schema, tools, text_completion, embeddings, errors):
    print(check.__name__, flush=True)
    check()
print("ok")
