"""Several choices, batches of prompts, echo, receipts and answers that were complete before the call."""
import pytest

from receipt_oracle import receipt
from serving import (api, Code, generate, generate_choices, model, refused, request, server, stub,
                     tiny_bundle)

STOP, LENGTH = 1, 2


def test_choices_equal_calls_of_their_own(stub, api):
    message = request(api, text="First prompt")
    message.more_prompts.add(text=b"Second")
    message.n = 3
    message.sampling.temperature, message.sampling.seed = 1.5, 2**64 - 2
    choices, parts = generate_choices(stub, message)
    assert sorted(choices) == list(range(6)) and not parts
    assert len({answer.started.request_id for answer in choices.values()}) == 1
    for number, answer in choices.items():
        alone = request(api, text=["First prompt", "Second"][number // 3])
        alone.sampling.temperature, alone.sampling.seed = 1.5, (2**64 - 2 + number % 3) % 2**64
        expected = generate(stub, alone)
        assert (answer.text, answer.ids) == (expected.text, expected.ids)
        assert answer.finished.receipt == expected.finished.receipt
        assert answer.finished.seed == alone.sampling.seed
        assert answer.started.prompt_tokens == expected.started.prompt_tokens
    assert len({tuple(answer.ids) for answer in choices.values()}) == 6


def test_one_message_holds_all_choices(stub, api):
    message = request(api, kind="GenerateOnceRequest")
    message.more_prompts.add(text=b"Second")
    message.n = 2
    message.sampling.temperature = 1.5
    message.output.echo = True
    once = stub.GenerateOnce(message, timeout=60)
    streamed = api[0].GenerateRequest()
    streamed.ParseFromString(message.SerializeToString())
    choices, parts = generate_choices(stub, streamed)
    assert (once.text, list(once.token_ids)) == (choices[0].text, choices[0].ids)
    assert len(once.more_choices) == 3
    for number, choice in enumerate(once.more_choices, 1):
        assert (choice.text, list(choice.token_ids)) == (choices[number].text, choices[number].ids)
        assert choice.finished.receipt == choices[number].finished.receipt
        assert choice.finished.choice == number
    assert [part.text for part in once.prompts] == ["Once upon a time", "Second"]
    assert {part.prompt: part.text for part in parts} == {0: "Once upon a time", 1: "Second"}


def test_headers_tell_the_request_id(stub, api):
    call = stub.Generate(request(api), timeout=60)
    headers = dict(call.initial_metadata())
    started = next(call).started
    assert headers["fixpoint-request-id"] == started.request_id
    list(call)


@pytest.mark.parametrize("rich", [False, True])
def test_receipt_is_the_one_of_the_definition(stub, api, model, rich):
    message = request(api, max_tokens=12, ignore_eos=True)
    expected = {}
    if rich:
        message.sampling.temperature, message.sampling.top_k, message.sampling.seed = 0.7, 40, 2**63 + 1
        message.sampling.top_p, message.sampling.min_p = 0.9, 0.05
        message.stopping.stop_strings.extend([b"zzzz", b"never", b"zzzz"])
        message.stopping.stop_ids.extend([9, 3])
        message.cache_salt, message.speculation, message.priority = b"tenant", api[0].SPECULATION_OFF, 3
        message.output.top_logprobs = 1
        expected = dict(inverse_temperature=93623, top_k=40, top_p=58982, min_p=3277, seed=2**63 + 1,
                        stop_strings=(b"zzzz", b"never"), stop_ids=(3, 9))
    prompt = stub.Tokenize(api[0].TokenizeRequest(prompt=message.prompt), timeout=10).token_ids
    answer = generate(stub, message)
    finished = answer.finished
    stopped_by_id = finished.WhichOneof("stopped_by") == "stop_token_id"
    assert finished.max_tokens == 12
    assert finished.receipt == receipt(
        digest=model.bundle_digest, numerics=model.numerics_version, prompt=prompt, output=answer.ids,
        reason=STOP if finished.reason == api[0].FINISH_REASON_STOP else LENGTH,
        stop_token=finished.stop_token_id if stopped_by_id else -1, stop_string=finished.stop_string.encode(),
        max_tokens=12, ignore_eos=True, **expected)


def test_receipt_of_an_answer_that_a_string_stopped(stub, api, model):
    text = generate(stub, request(api)).text
    stop = text[3:6].encode()
    message = request(api)
    message.stopping.stop_strings.append(stop)
    prompt = stub.Tokenize(api[0].TokenizeRequest(prompt=message.prompt), timeout=10).token_ids
    answer = generate(stub, message)
    assert answer.finished.stop_string.encode() == stop
    assert answer.finished.receipt == receipt(
        digest=model.bundle_digest, numerics=model.numerics_version, prompt=prompt, output=answer.ids, reason=STOP,
        stop_string=stop, stop_strings=(stop,), max_tokens=24, ignore_eos=True)


def test_complete_answers_are_finished_at_once(stub, api):
    message = request(api)
    whole = generate(stub, message)
    message.resume_token_ids.extend(whole.ids)
    again = generate(stub, message)
    assert (again.text, again.ids) == ("", [])
    assert again.finished.receipt == whole.finished.receipt
    assert again.finished.reason == api[0].FINISH_REASON_LENGTH
    assert again.finished.usage.completion_tokens == 24
    message.resume_token_ids.append(1)
    assert "resume_token_ids" in refused(lambda: stub.Generate(message, timeout=30))


def test_constraint_is_taken_or_refused_as_the_model_says(stub, api, model):
    message = request(api, max_tokens=8)
    message.constraint.regex = b"(("
    if model.has_constraints:
        assert "constraint.regex" in refused(lambda: stub.Generate(message, timeout=30))
    else:
        assert "constraint" in refused(lambda: stub.Generate(message, timeout=30), Code.FAILED_PRECONDITION)
