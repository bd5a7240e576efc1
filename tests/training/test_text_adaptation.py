"""Adapting texts for speech: what is accepted, what is asked again, what is rejected; models and servers."""

import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dualspeech.training.data_steps import chat_backends
from dualspeech.training.data_steps.chat_backends import ChatBackend, EndpointChat, TransformersChat
from dualspeech.training.data_steps.step import Rejection, apply_step
from dualspeech.training.data_steps.text_adaptation import (
    STYLES,
    AdaptForSpeech,
    adaptation_messages,
    parse_adaptation,
)
from tests.tiny import tiny_tokenizer

ROW = {"question": "What is 2 + 2?", "answer": "**4**", "source": "qa:1", "metadata": {"a": 1}}


def part(state="PASSTHROUGH", text="", style="neutral", **flags):
    return {"state": state, "text": text, "style": style, "simplified": False, **flags}


def reply(question=None, answer=None, quality=4):
    answer = {"corrected": False, **(answer or part())}
    return json.dumps({"question": question or part(), "answer": answer, "quality": quality})


class Scripted(ChatBackend):
    """Gives the replies of a list, and keeps what it was asked."""

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def reply(self, messages):
        self.asked.append([dict(message) for message in messages])
        return self.replies.pop(0)

    def settings(self):
        return {"backend": "Scripted"}


def adapt(*replies, row=ROW, **kwargs):
    backend = Scripted(*replies)
    (outcome,) = apply_step(AdaptForSpeech(backend, **kwargs), [row])
    return outcome, backend


def test_adapted_and_passed_through():
    made, backend = adapt(reply(answer=part("ADAPT", "It is four.", "happy", corrected=True)))
    assert made[0]["question"] == ROW["question"] and made[0]["answer"] == "It is four."
    assert made[0]["source"] == "qa:1"
    assert made[0]["metadata"] == {
        "a": 1,
        "adaptation": {
            "question": {"state": "PASSTHROUGH", "style": "neutral", "simplified": False},
            "answer": {"state": "ADAPT", "style": "happy", "simplified": False, "corrected": True},
            "quality": 4,
        },
    }
    (messages,) = backend.asked
    assert [message["role"] for message in messages] == ["system", "user"]
    assert json.loads(messages[1]["content"]) == {"question": ROW["question"], "answer": ROW["answer"]}


def test_prompt():
    system, user = adaptation_messages("今天?", "b")
    for word in ("PASSTHROUGH", "ADAPT", "REJECT", '"corrected"', '"simplified"', '"quality"', "LaTeX", *STYLES):
        assert word in system["content"]
    assert "今天" in user["content"] and "{math}" not in system["content"] and "{{" not in system["content"]
    assert "LaTeX" not in adaptation_messages("a", "b", math="words")[0]["content"]


@pytest.mark.parametrize(
    "text",
    [
        "```json\n{}\n```",
        "<think>\nperhaps {this}?\n</think>\n\n{}",
        "Here it is: {} I hope it helps.",
        'Here is {the} JSON with {"a": 1}: {}',
    ],
)
def test_json_within_a_reply(text):
    made, _ = adapt(text.replace("{}", reply()))
    assert made[0]["answer"] == ROW["answer"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("no", "no JSON object"),
        ('{"question": ', "not valid JSON"),
        ("[1]", "no JSON object"),
        (json.dumps({"question": part(), "quality": 3}), "'answer' is a required property"),
        (reply(question=part("MAYBE")), "MAYBE"),
        (reply(question=part(style="bored")), "bored"),
        (reply(question=part(more=1)), "'more' was unexpected"),
        (reply(quality=6), "6 is greater than the maximum"),
        (reply(quality=True), "True is not of type"),
        (reply(answer=part("ADAPT", " ")), '"answer" has the state ADAPT but no "text"'),
        (reply(question=part(text="Other?")), "PASSTHROUGH but another"),
        (reply(question=part(style="")), 'no "style"'),
        (reply(question=part("ADAPT", "x \ud83d")), "which UTF-8 cannot encode"),
        ('{"question": ' * 3000, "nested too deeply"),
        ('{"a": 1}', "does not follow the schema"),
    ],
)
def test_invalid_replies(wrong, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_adaptation(wrong, ROW["question"], ROW["answer"])
    made, backend = adapt(wrong, wrong, reply())
    assert made[0]["answer"] == ROW["answer"]
    # the second try is told what was wrong with the first
    first, second, third = backend.asked
    assert second[:2] == first and second[2] == {"role": "assistant", "content": wrong}
    assert message in second[3]["content"] and len(third) == 4
    rejected, backend = adapt(wrong, wrong, max_retries=1)
    assert rejected.reason.startswith("no valid reply in 2 attempts; the last one: ") and message in rejected.reason
    assert len(backend.asked) == 2


def test_a_text_that_repeats_the_original_is_fine():
    parsed = parse_adaptation(reply(question=part(text=ROW["question"])), ROW["question"], ROW["answer"])
    assert parsed["quality"] == 4


def test_rejections():
    rejected, _ = adapt(reply(answer=part("REJECT", "A long program.", "")))
    assert rejected == Rejection("REJECT of the answer: A long program.")
    rejected, _ = adapt(reply(question=part("REJECT", style="")))
    assert rejected == Rejection("REJECT of the question: the model gave no reason")
    rejected, _ = adapt(reply(quality=2), min_quality=3)
    assert rejected == Rejection("the quality is 2; `min_quality` is 3")
    rejected, backend = adapt(row={"question": "a", "answer": ""})
    assert "`answer` must be a text" in rejected.reason and not backend.asked


def test_one_bad_row_is_not_asked_twice():
    backend = Scripted(reply(), "no", reply())
    outcomes = apply_step(AdaptForSpeech(backend, max_retries=0), [ROW, ROW, ROW])
    assert [isinstance(outcome, Rejection) for outcome in outcomes] == [False, True, False]
    assert len(backend.asked) == 3


def test_wrong_settings():
    for wrong in ({"math": "braille"}, {"max_retries": -1}, {"min_quality": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AdaptForSpeech(Scripted(), **wrong)


class Server(ThreadingHTTPServer):
    """Answers `/v1/chat/completions` with what is left of `answers`: a text, or the number of an error."""

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests, self.lock = answers, [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            answer = self.server.answers
            if isinstance(answer, list):
                answer = answer.pop(0)
            elif callable(answer):
                answer = answer(body)
        status, reason = (answer, None) if isinstance(answer, int) else (200, "stop")
        if isinstance(answer, tuple):
            answer, reason = answer
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        data = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        payload = json.dumps(data if status == 200 else {"error": "no"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(monkeypatch):
    """`serve(answers)` starts a server and gives it back."""
    monkeypatch.setattr(chat_backends, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    servers = []

    def start(answers):
        servers.append(Server(answers))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ready(server, **kwargs):
    backend = pickle.loads(pickle.dumps(EndpointChat(server.url, "some-model", **kwargs)))
    backend.setup()
    return backend


def test_server(serve, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_not_for_this_server")
    monkeypatch.setenv("SOME_KEY", "secret")
    server = serve(["no", reply(answer=part("ADAPT", "It is four."))])
    backend = ready(server, api_key_variable="SOME_KEY", options={"temperature": 0.1}, concurrency=1)
    step = AdaptForSpeech(backend)
    assert "secret" not in json.dumps(step.settings()) and server.url not in json.dumps(step.settings())
    ((made,),) = step.process([ROW])
    assert made["answer"] == "It is four."
    (path, headers, first), (_, _, second) = server.requests
    assert path == "/v1/chat/completions" and headers["authorization"] == "Bearer secret"
    assert first["model"] == "some-model" and first["temperature"] == 0.1 and first["max_tokens"] == 2048
    assert first["messages"] == adaptation_messages(ROW["question"], ROW["answer"])
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "user"]

    server = serve([reply()])
    ready(server).reply([{"role": "user", "content": "a"}])
    assert "hf_not" not in json.dumps(server.requests)


def test_rows_are_asked_at_the_same_time(serve):
    meeting = threading.Barrier(4, timeout=20)

    def answer(body):
        pair = json.loads(body["messages"][1]["content"])
        return reply(answer=part("ADAPT", f"It is {pair['answer']}."))

    server = serve(answer)
    backend = ready(server, concurrency=4)
    ask = backend.reply
    backend.reply = lambda messages: (meeting.wait(), ask(messages))[1]
    rows = [{"question": "a", "answer": str(number)} for number in range(8)]
    outcomes = AdaptForSpeech(backend).process(rows)
    assert [made["answer"] for (made,) in outcomes] == [f"It is {number}." for number in range(8)]


def test_errors_of_a_server(serve):
    # the server is away for a moment, and then answers
    server = serve([503, 429, reply()])
    (outcome,) = apply_step(AdaptForSpeech(ready(server)), [ROW])
    assert outcome[0]["answer"] == ROW["answer"] and len(server.requests) == 3
    # a request that it does not take is the fault of the row
    (outcome,) = apply_step(AdaptForSpeech(ready(serve([400]))), [ROW])
    assert isinstance(outcome, Rejection) and "status 400" in outcome.reason
    (outcome,) = apply_step(AdaptForSpeech(ready(serve([("cut", "length")]))), [ROW])
    assert "did not end within `max_tokens` 2048" in outcome.reason
    # everything else stops the run: rejecting all rows would lose them
    for answers, attempts in (([401] * 5, 1), ([500] * 5, 3)):
        server = serve(answers)
        with pytest.raises(RuntimeError, match="no answer from"):
            apply_step(AdaptForSpeech(ready(server, max_attempts=3)), [ROW])
        assert len(server.requests) == attempts
    server = serve([])
    server.shutdown()
    server.server_close()
    with pytest.raises(RuntimeError, match="at attempt 2"):
        ready(server, max_attempts=2).reply([{"role": "user", "content": "a"}])


def test_offline_mode_stops_at_once(serve, monkeypatch):
    server = serve([])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=r"at attempt 1: .*HF_HUB_OFFLINE"):
        ready(server).reply([{"role": "user", "content": "a"}])


def test_missing_key(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ValueError, match="'SOME_KEY' is not set"):
        EndpointChat("http://127.0.0.1:1/v1", "m", api_key_variable="SOME_KEY").setup()


@pytest.fixture
def chat_checkpoint(tmp_path):
    """A random model that has a chat template."""
    tokenizer = tiny_tokenizer("chat")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if mark is defined %}{{ mark }}{% endif %}{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16384,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_model(chat_checkpoint, monkeypatch):
    backend = pickle.loads(pickle.dumps(TransformersChat(chat_checkpoint, max_new_tokens=8, device="cpu")))
    backend.setup()
    chat = [{"role": "user", "content": "Hello"}]
    model, tokenizer = backend._model, backend._tokenizer
    with pytest.raises(ValueError, match="did not end within `max_new_tokens` 8"):
        backend.reply(chat)
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected = model.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :]
    # what it says until the end of its turn
    model.generation_config.eos_token_id = int(expected[3])
    first = expected.tolist().index(int(expected[3])) + 1
    assert backend.reply(chat) == tokenizer.decode(expected[:first], skip_special_tokens=True)

    seen = []
    generate = model.generate

    def watch(input_ids, **kwargs):
        seen.append(tokenizer.decode(input_ids[0]))
        return generate(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "generate", watch)
    backend.template = {"mark": "<think>"}
    (outcome,) = apply_step(AdaptForSpeech(backend, max_retries=1), [ROW])
    assert isinstance(outcome, Rejection)
    assert len(seen) == 1 or "That is not valid" in seen[1]
    assert seen[0].endswith("<|im_start|>assistant\n<think>") and "PASSTHROUGH" in seen[0]


def test_fake_model_answers(chat_checkpoint, monkeypatch):
    """The whole step with a model that says the right thing at its second try."""
    backend = TransformersChat(chat_checkpoint, max_new_tokens=4000, device="cpu")
    backend.setup()
    answers = iter(["sorry", reply(answer=part("ADAPT", "It is four."))])

    def generate(input_ids, **kwargs):
        ids = backend._tokenizer(next(answers) + "<|im_end|>", add_special_tokens=False)["input_ids"]
        return torch.cat([input_ids, torch.tensor([ids])], dim=1)

    monkeypatch.setattr(backend._model, "generate", generate)
    ((made,),) = AdaptForSpeech(backend).process([ROW])
    assert made["answer"] == "It is four."
