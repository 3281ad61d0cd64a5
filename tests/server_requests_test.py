"""Requests that fixpoint-server refuses: INVALID_ARGUMENT that names field and limit."""
import pytest

from serving import api, Code, generate, model, refused, request, server, stub, tiny_bundle


def bad(name, spoil, *named):
    return pytest.param(spoil, named, id=name)


def many(field, values):
    field.extend(values)


@pytest.mark.parametrize("spoil, named", [
    bad("no prompt", lambda r, m: r.ClearField("prompt"), "prompt"),
    bad("empty prompt", lambda r, m: setattr(r.prompt, "text", b""), "prompt.text", "0 bytes"),
    bad("too many bytes", lambda r, m: setattr(r.prompt, "text", b"x" * (m.max_prompt_bytes + 1)),
        "prompt.text", "{max_prompt_bytes}"),
    bad("too many tokens", lambda r, m: many(r.prompt.token_ids.ids, [1] * (m.max_prompt_tokens + 1)),
        "prompt.token_ids", "{max_prompt_tokens}"),
    bad("invalid UTF-8", lambda r, m: setattr(r.prompt, "text", b"ab\xff"), "prompt.text", "UTF-8", "byte 2"),
    bad("surrogate", lambda r, m: setattr(r.prompt, "text", b"\xed\xa0\x80"), "prompt.text", "UTF-8"),
    bad("NUL", lambda r, m: setattr(r.prompt, "text", b"a\0b"), "prompt.text", "NUL", "byte 1"),
    bad("id out of vocabulary", lambda r, m: many(r.prompt.token_ids.ids, [m.vocab_size]), "token_ids", "{vocab_size}"),
    bad("no messages", lambda r, m: r.prompt.chat.SetInParent(), "prompt.chat.messages", "0 messages"),
    bad("max_tokens 0", lambda r, m: setattr(r.stopping, "max_tokens", 0), "stopping.max_tokens"),
    bad("max_tokens over the room", lambda r, m: setattr(r.stopping, "max_tokens", m.max_context_tokens),
        "stopping.max_tokens", "{max_context_tokens}"),
    bad("max_tokens huge", lambda r, m: setattr(r.stopping, "max_tokens", 2**32 - 1), "stopping.max_tokens"),
    bad("temperature -1", lambda r, m: setattr(r.sampling, "temperature", -1), "sampling.temperature", "-1"),
    bad("temperature nan", lambda r, m: setattr(r.sampling, "temperature", float("nan")), "sampling.temperature", "nan"),
    bad("temperature inf", lambda r, m: setattr(r.sampling, "temperature", float("inf")), "sampling.temperature", "inf"),
    bad("temperature 1e9", lambda r, m: setattr(r.sampling, "temperature", 1e9), "sampling.temperature", "100"),
    bad("top_p 0", lambda r, m: setattr(r.sampling, "top_p", 0), "sampling.top_p"),
    bad("top_p 1.1", lambda r, m: setattr(r.sampling, "top_p", 1.1), "sampling.top_p", "1.1"),
    bad("min_p -0.1", lambda r, m: setattr(r.sampling, "min_p", -0.1), "sampling.min_p", "-0.1"),
    bad("top_k over vocabulary", lambda r, m: setattr(r.sampling, "top_k", m.vocab_size + 1), "sampling.top_k",
        "{vocab_size}"),
    bad("five stop strings", lambda r, m: many(r.stopping.stop_strings, [b"a"] * 5), "stop_strings", "4", "5"),
    bad("empty stop string", lambda r, m: many(r.stopping.stop_strings, [b""]), "stop_strings[0]"),
    bad("long stop string", lambda r, m: many(r.stopping.stop_strings, [b"a" * 257]), "stop_strings[0]", "256", "257"),
    bad("33 stop ids", lambda r, m: many(r.stopping.stop_ids, [1] * 33), "stop_ids", "32", "33"),
    bad("stop id out of vocabulary", lambda r, m: many(r.stopping.stop_ids, [m.vocab_size]), "stop_ids[0]"),
    bad("21 logprobs", lambda r, m: setattr(r.output, "top_logprobs", 21), "output.top_logprobs", "20", "21"),
    bad("min_tokens over max_tokens", lambda r, m: setattr(r.stopping, "min_tokens", 25), "stopping.min_tokens", "24", "25"),
    bad("presence_penalty", lambda r, m: setattr(r.sampling, "presence_penalty", 2.1), "sampling.presence_penalty", "2.1"),
    bad("frequency_penalty", lambda r, m: setattr(r.sampling, "frequency_penalty", -3), "sampling.frequency_penalty", "-3"),
    bad("repetition_penalty", lambda r, m: setattr(r.sampling, "repetition_penalty", 0), "sampling.repetition_penalty", "0.01"),
    bad("bias out of vocabulary", lambda r, m: r.sampling.logit_bias.add(token_id=m.vocab_size, bias=1),
        "sampling.logit_bias[0].token_id", "{vocab_size}"),
    bad("bias", lambda r, m: r.sampling.logit_bias.add(token_id=0, bias=101), "sampling.logit_bias[0].bias", "100", "101"),
    bad("bias twice", lambda r, m: many(r.sampling.logit_bias, list(r.sampling.logit_bias) + [
        type(r.sampling.logit_bias.add())(token_id=0, bias=1)]), "sampling.logit_bias", "token 0 twice"),
    bad("21 prompt logprobs", lambda r, m: setattr(r.output, "prompt_logprobs", 21), "output.prompt_logprobs", "20", "21"),
    bad("n 0", lambda r, m: setattr(r, "n", 0), "n: 0"),
    bad("n 9", lambda r, m: setattr(r, "n", 9), "n: 9", "8"),
    bad("33 prompts", lambda r, m: [r.more_prompts.add(text=b"x") for _ in range(32)], "more_prompts", "32", "33 times 1"),
    bad("second prompt too long", lambda r, m: r.more_prompts.add(text=b"x" * (m.max_prompt_bytes + 1)),
        "more_prompts[0].text", "{max_prompt_bytes}"),
    bad("resume out of vocabulary", lambda r, m: r.resume_token_ids.append(m.vocab_size), "resume_token_ids[0]"),
    bad("resume with n", lambda r, m: (setattr(r, "n", 2), r.resume_token_ids.append(1)), "resume_token_ids", "1 choice"),
    bad("resume over max_tokens", lambda r, m: r.resume_token_ids.extend([1] * 25), "resume_token_ids", "24", "25"),
    bad("empty constraint", lambda r, m: r.constraint.SetInParent(), "constraint"),
    bad("long schema", lambda r, m: setattr(r.constraint, "json_schema", b"x" * 65537), "constraint.json_schema", "65536",
        "65537"),
    bad("cache_salt", lambda r, m: setattr(r, "cache_salt", b"x" * 65), "cache_salt", "64", "65"),
    bad("priority", lambda r, m: setattr(r, "priority", 1000), "priority", "1000"),
])
def test_bad_request_is_refused(stub, api, model, spoil, named):
    for kind, call in (("GenerateRequest", stub.Generate), ("GenerateOnceRequest", stub.GenerateOnce)):
        message = request(api, kind=kind)
        spoil(message, model)
        details = refused(lambda: call(message, timeout=30))
        for part in named:
            limit = part.strip("{}")
            assert str(getattr(model, limit) if part.startswith("{") else part) in details


@pytest.mark.parametrize("field, number", [("", 29), ("sampling", 19), ("prompt", 9), ("stopping", 9), ("output", 9)])
def test_unknown_field_is_refused(stub, api, field, number):
    message = request(api)
    tag = bytes([number << 3 & 0x7f | 0x80, number >> 4]) if number > 15 else bytes([number << 3])
    target = getattr(message, field) if field else message
    target.MergeFromString(tag + b"\x01")
    name = type(target).DESCRIPTOR.full_name
    assert f"{name}: field number {number} " in refused(lambda: stub.Generate(message, timeout=30))


def test_message_over_4_mib_is_refused(stub, api):
    refused(lambda: stub.Generate(request(api, text="x" * (5 << 20)), timeout=30), Code.RESOURCE_EXHAUSTED)


def test_server_serves_on_after_bad_requests(server, stub, api):
    assert server.process.poll() is None
    assert len(generate(stub, request(api)).ids) == 24
