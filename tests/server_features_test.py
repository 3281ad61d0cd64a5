"""What a request can ask of the engine, asked over the wire: continuation, penalties, bias, limits, cache, speculation, grammars."""
import json
import re

import pytest

from serving import (api, generate, generate_choices, grpc, long_request, model, ready_server, refused, request,
                     samples, server, stub, tiny_bundle)


def sampled(api, **stopping):
    message = request(api, **stopping)
    message.sampling.temperature, message.sampling.seed = 1.5, 11
    return message


@pytest.mark.parametrize("rules", [False, True])
def test_answers_go_on_where_they_broke(stub, api, rules):
    message = sampled(api, max_tokens=30, ignore_eos=True)
    if rules:
        message.sampling.presence_penalty, message.sampling.frequency_penalty = 0.5, 0.25
        message.sampling.repetition_penalty = 1.2
        message.sampling.logit_bias.add(token_id=40, bias=3)
    whole = generate(stub, message)
    assert len(whole.ids) == 30
    for broke_at in (1, 7, 15, 29, 30):
        del message.resume_token_ids[:]
        message.resume_token_ids.extend(whole.ids[:broke_at])
        rest = generate(stub, message)
        assert whole.ids[:broke_at] + rest.ids == whole.ids
        assert rest.finished.receipt == whole.finished.receipt
        assert rest.finished.usage.completion_tokens == 30
        assert whole.text.endswith(rest.text)


def test_text_of_a_continued_answer_is_the_whole_text(stub, api):
    """Broken behind each delta of a stream with code points and a stop string across token borders."""
    message = sampled(api, max_tokens=40, ignore_eos=True)
    text = generate(stub, message).text
    message.stopping.stop_strings.append((text[10:12] + "never").encode())  # its beginning is held back
    deltas = [m.delta for m in stub.Generate(message, timeout=60) if m.WhichOneof("event") == "delta"]
    expected = "".join(d.text for d in deltas)
    seen, ids = "", []
    for delta in deltas:
        if not delta.token_ids:
            break  # held-back text: comes again
        seen += delta.text
        ids.extend(delta.token_ids)
        resumed = api[0].GenerateRequest()
        resumed.CopyFrom(message)
        resumed.resume_token_ids.extend(ids)
        assert seen + generate(stub, resumed).text == expected


def test_min_tokens_keeps_the_end_away(stub, api, model):
    """A stop id that greedy decoding would choose early comes no earlier than asked."""
    free = generate(stub, request(api)).ids
    message = request(api)
    message.stopping.stop_ids.append(free[2])
    assert len(generate(stub, message).ids) <= 2
    message.stopping.min_tokens = 12
    answer = generate(stub, message)
    assert len(answer.ids) >= 12
    assert free[2] not in answer.ids[:12]


def test_logit_bias_forces_and_bans(stub, api):
    banned = generate(stub, request(api)).ids[0]
    message = request(api)
    message.sampling.logit_bias.add(token_id=banned, bias=-100)
    assert banned not in generate(stub, message).ids
    forced = request(api, max_tokens=5, ignore_eos=True)
    forced.sampling.logit_bias.add(token_id=65, bias=100)
    assert generate(stub, forced).ids == [65] * 5
    # Enough of a penalty for what was said breaks the row again.
    forced.sampling.logit_bias[0].bias = 100
    forced.sampling.repetition_penalty = 100
    assert generate(stub, forced).ids != [65] * 5


def test_penalties_change_the_answer_and_zero_does_not(stub, api):
    plain = generate(stub, request(api, max_tokens=60, ignore_eos=True)).ids
    for field, value, neutral in (("presence_penalty", 2, 0), ("frequency_penalty", 2, 0), ("repetition_penalty", 50, 1)):
        message = request(api, max_tokens=60, ignore_eos=True)
        setattr(message.sampling, field, neutral)
        assert generate(stub, message).ids == plain
        setattr(message.sampling, field, value)
        assert len(set(generate(stub, message).ids)) > len(set(plain)), field


def test_prompt_logprobs_are_those_of_generation(stub, api):
    """What the model thinks of a prompt's tokens is what it thought when it generated them."""
    message = request(api)
    message.output.top_logprobs = 2
    ids = list(stub.Tokenize(api[0].TokenizeRequest(prompt=message.prompt), timeout=10).token_ids)
    answer = generate(stub, message)
    again = api[0].GenerateRequest()
    again.prompt.token_ids.ids.extend(ids + answer.ids)
    again.stopping.max_tokens = 1
    again.output.prompt_logprobs = 2
    again.output.echo = True
    for _ in range(2):  # the second time the prompt is in the cache
        _, parts = generate_choices(stub, again)
        got = {part.index + i: logprobs for part in parts for i, logprobs in enumerate(part.logprobs)}
        assert sorted(got) == list(range(min(got), len(ids) + len(answer.ids)))
        assert min(got) <= 2
        for i, logprobs in enumerate(answer.logprobs):
            assert got[len(ids) + i] == logprobs
    assert parts[0].text.endswith(answer.text)


def test_cached_tokens_are_told_at_the_start_and_salts_keep_apart(tiny_bundle, api):
    server = ready_server(tiny_bundle)
    try:
        stub = api[1].GenerationStub(server.channel)
        text = "All the king's horses and all the king's men. " * 12

        def cached(salt=b"", **fields):
            message = request(api, text=text, max_tokens=4, ignore_eos=True)
            message.cache_salt = salt
            for name, value in fields.items():
                setattr(message, name, value)
            answer = generate(stub, message)
            assert answer.started.cached_tokens == answer.finished.usage.cached_tokens
            answers.append(answer.ids)
            return answer.started.cached_tokens, answer.started.prompt_tokens

        answers = []
        first, prompt_tokens = cached()
        again, _ = cached()
        assert first < 64 < again <= prompt_tokens
        assert cached(salt=b"tenant")[0] == first
        assert cached(salt=b"tenant")[0] == again
        assert cached(use_cache=False)[0] == first
        assert cached(salt=b"fresh", use_cache=False)[0] == first
        assert cached(salt=b"fresh")[0] == first  # the call before left nothing
        assert len(set(map(tuple, answers))) == 1
        values = samples(server.get("/metrics")[1])[1]
        assert values["fixpoint_prefix_cache_hit_tokens_total"] > 0
        load = stub.GetLoad(api[0].GetLoadRequest(), timeout=10)
        assert load.cache_hit_tokens == values["fixpoint_prefix_cache_hit_tokens_total"]
        assert load.cache_query_tokens == values["fixpoint_prefix_cache_query_tokens_total"]
        assert load.free_kv_blocks == load.total_kv_blocks  # cached blocks count as free
    finally:
        server.close()


def test_choices_of_a_call_share_their_prompt(server, stub, api):
    before = samples(server.get("/metrics")[1])[1]["fixpoint_prefix_cache_hit_tokens_total"]
    message = request(api, text="A prompt of its own, told eight times over. " * 12, max_tokens=2, ignore_eos=True)
    message.n = 8
    choices, _ = generate_choices(stub, message)
    assert len(choices) == 8
    assert samples(server.get("/metrics")[1])[1]["fixpoint_prefix_cache_hit_tokens_total"] > before


def test_speculation_changes_no_token(server, stub, api):
    pb = api[0]
    answers = {}
    before = samples(server.get("/metrics")[1])[1]["fixpoint_draft_tokens_total"]
    for mode in (pb.SPECULATION_OFF, pb.SPECULATION_AUTO, pb.SPECULATION_ON):
        message = request(api, text="one two three one two three one two three", max_tokens=120, ignore_eos=True)
        message.sampling.frequency_penalty = -2  # repeats itself
        message.output.top_logprobs = 1
        message.speculation = mode
        answer = generate(stub, message)
        answers[mode] = (answer.text, answer.ids, answer.logprobs, answer.finished.receipt)
    assert answers[pb.SPECULATION_OFF] == answers[pb.SPECULATION_AUTO] == answers[pb.SPECULATION_ON]
    assert samples(server.get("/metrics")[1])[1]["fixpoint_draft_tokens_total"] > before


def test_constrained_answers_keep_to_the_grammar(stub, api, model):
    if not model.has_constraints:
        pytest.skip("this server has no grammars")
    for seed in range(5):
        message = api[0].GenerateRequest()
        message.prompt.text = b"A date:"
        message.stopping.max_tokens = 40
        message.sampling.temperature, message.sampling.seed = 2, seed
        message.constraint.regex = rb"[0-9]{4}-[0-9]{2}-[0-9]{2}"
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", generate(stub, message).text)
        message.constraint.json_schema = json.dumps({
            "type": "object", "properties": {"ok": {"type": "boolean"}, "size": {"enum": [1, 2]}},
            "required": ["ok", "size"], "additionalProperties": False}).encode()
        answer = generate(stub, message)
        value = json.loads(answer.text)
        assert isinstance(value["ok"], bool) and value["size"] in (1, 2)
        # Broken inside and continued.
        message.resume_token_ids.extend(answer.ids[:4])
        assert answer.ids[:4] + generate(stub, message).ids == answer.ids
        del message.resume_token_ids[:]
        message.resume_token_ids.append(ord("x"))
        assert "constraint" in refused(lambda: stub.Generate(message, timeout=30))


@pytest.mark.parametrize("field, text", [("json_schema", b"{"), ("json_schema", b'{"type": "nonsense"}'), ("regex", b"(("),
                                         ("regex", b"(a{1000}){1000}"), ("json_schema", b"[" * 60000)])
def test_bad_constraints_fail_their_own_call_only(stub, api, model, field, text):
    if not model.has_constraints:
        pytest.skip("this server has no grammars")
    running = stub.Generate(long_request(api, model), timeout=300)
    next(running)
    message = request(api, max_tokens=8)
    setattr(message.constraint, field, text)
    assert f"constraint.{field}" in refused(lambda: stub.Generate(message, timeout=30))
    running.cancel()
    assert len(generate(stub, request(api)).ids) == 24


def test_deadline_in_the_queue_and_between_steps(tiny_bundle, api):
    server = ready_server(tiny_bundle, "--max-running", "1", "--threads", "1")
    try:
        stub = api[1].GenerationStub(server.channel)
        model = stub.GetModel(api[0].GetModelRequest(), timeout=10)
        first = [stub.Generate(long_request(api, model), timeout=300) for _ in range(40)]  # one after the other
        next(first[0])
        waiting = stub.Generate(long_request(api, model), timeout=0.05)
        with pytest.raises(grpc.RpcError) as error:
            list(waiting)
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        for call in first:
            call.cancel()
    finally:
        server.close()


def test_queue_timeout_is_resource_exhausted(tiny_bundle, api):
    server = ready_server(tiny_bundle, "--max-running", "1", "--threads", "1", "--queue-timeout", "0.05")
    try:
        stub = api[1].GenerationStub(server.channel)
        model = stub.GetModel(api[0].GetModelRequest(), timeout=10)
        calls = [stub.Generate(long_request(api, model), timeout=300) for _ in range(60)]
        codes = []
        for call in calls:
            try:
                list(call)
                codes.append("OK")
            except grpc.RpcError as error:
                codes.append(error.code())
        assert set(codes) == {"OK", grpc.StatusCode.RESOURCE_EXHAUSTED}
        values = samples(server.get("/metrics")[1])[1]
        refusals = codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert values['fixpoint_calls_refused_total{reason="queue_timeout"}'] == refusals
    finally:
        server.close()
