"""What fixpoint-server tells about itself: health, reflection, metrics, load, log."""
import json
import re
import time

import pytest

from serving import (api, generate, health, refused, request, running, samples, server, stub, tiny_bundle,
                     until)


def test_health_of_server_and_service(server):
    assert server.health() == health.HealthCheckResponse.SERVING
    assert server.health("fixpoint.v1.Generation") == health.HealthCheckResponse.SERVING


def test_reflection_describes_the_service(server):
    reflection = pytest.importorskip("grpc_reflection.v1alpha.proto_reflection_descriptor_database")
    descriptor_pool = pytest.importorskip("google.protobuf.descriptor_pool")
    database = reflection.ProtoReflectionDescriptorDatabase(server.channel)
    names = set(database.get_services())
    assert {"fixpoint.v1.Generation", "grpc.health.v1.Health"} <= names
    pool = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName("fixpoint.v1.Generation")
    assert {m.name for m in service.methods} == {"Generate", "GenerateOnce", "Tokenize", "Detokenize", "GetModel", "GetLoad"}
    assert pool.FindServiceByName("grpc.health.v1.Health")


def test_http_probes(server):
    assert server.get("/healthz")[0] == 200
    assert server.get("/readyz")[0] == 200
    assert server.get("/nothing")[0] == 404


def test_metrics_are_well_formed_and_count(server, stub, api):
    _, before = samples(server.get("/metrics")[1])
    answer = generate(stub, request(api))
    until(lambda: running(server) == 0)
    types, after = samples(server.get("/metrics")[1])
    # A code's first burst is a rise from zero only if the zero was there.
    for code in ("OK", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE"):
        assert f'fixpoint_calls_total{{code="{code}",method="GenerateOnce"}}' in before
    for name, kind in types.items():
        assert name.startswith("fixpoint_")
        assert (kind == "counter") == name.endswith("_total"), name

    def grown(name):
        return after[name] - before.get(name, 0)

    assert grown("fixpoint_generation_tokens_total") == 24
    assert grown("fixpoint_prompt_tokens_total") == answer.started.prompt_tokens
    assert grown('fixpoint_requests_finished_total{reason="length"}') == 1
    assert grown('fixpoint_calls_total{code="OK",method="Generate"}') == 1
    assert grown("fixpoint_time_to_first_token_seconds_count") == 1
    assert grown("fixpoint_inter_token_latency_seconds_count") == 23
    assert grown("fixpoint_request_duration_seconds_count") == 1
    below_10_ms = [n for n in after if n.startswith("fixpoint_inter_token_latency_seconds_bucket")
                   and float(re.search('le="([^"]+)"', n)[1]) < 0.01]
    assert len(below_10_ms) >= 5
    assert any(n.startswith("fixpoint_bundle_info{") for n in after)
    assert any(n.startswith("fixpoint_build_info{") for n in after)
    assert after["fixpoint_ready"] == 1


def test_metrics_pass_the_reference_parser(server):
    parser = pytest.importorskip("prometheus_client.parser")
    families = list(parser.text_string_to_metric_families(server.get("/metrics")[1]))
    assert len(families) > 15


def test_load_is_told(stub, api):
    load = stub.GetLoad(api[0].GetLoadRequest(), timeout=10)
    assert load.total_kv_blocks > 0
    assert 0 <= load.kv_usage <= 1
    assert load.ready
    assert not load.draining


def test_what_routers_and_autoscalers_need_is_there(server):
    types, values = samples(server.get("/metrics")[1])
    for name in ("requests_running", "requests_waiting", "waiting_tokens", "kv_cache_usage_ratio", "kv_cache_blocks",
                 "kv_cache_block_tokens", "max_running", "max_waiting", "engine_stuck"):
        assert types[f"fixpoint_{name}"] == "gauge"
        assert f"fixpoint_{name}" in values
    for name in ("preemptions", "prefix_cache_query_tokens", "prefix_cache_hit_tokens", "drafts", "draft_tokens",
                 "draft_tokens_accepted", "slow_readers"):
        assert values[f"fixpoint_{name}_total"] >= 0  # from the start, so that rates are right from the first event
    for reason in ("loading", "draining", "device_lost", "stuck", "intake_full", "queue_full", "queue_timeout"):
        assert f'fixpoint_calls_refused_total{{reason="{reason}"}}' in values


def test_traceparent_is_logged_and_a_bad_one_ignored(server, stub, api):
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

    def logged(value):
        call = stub.Generate(request(api), timeout=60, metadata=[("traceparent", value)])
        request_id = next(call).started.request_id
        list(call)
        found = lambda: [e for e in server.events("request") if e["request_id"] == request_id]
        until(found)
        return found()[0]

    event = logged(f"00-{trace}-{parent}-01")
    assert (event["trace_id"], event["parent_id"]) == (trace, parent)
    assert "trace_id" not in logged(f"00-{trace.upper()}-{parent}-01")
    assert "trace_id" not in logged("nonsense")


def test_self_test_ran_before_ready(server):
    names = [json.loads(line)["event"] for line in server.lines if line and line.startswith("{")]
    assert names.index("self_test") < names.index("ready")
    assert server.events("self_test")[0]["compared"]


def test_log_is_json_lines_without_prompt_text(server, stub, api):
    secret = "a-very-secret-prompt"
    generate(stub, request(api, text=secret))
    refused(lambda: stub.Generate(request(api, text=secret, max_tokens=0), timeout=30))
    time.sleep(0.2)
    with server.changed:
        lines = [line for line in server.lines if line]
    assert all(json.loads(line)["event"] for line in lines)
    assert not any(secret in line for line in lines)
    assert any(e["code"] == "INVALID_ARGUMENT" and e["request_id"] for e in server.events("request"))
