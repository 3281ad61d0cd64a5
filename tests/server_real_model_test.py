"""fixpoint-server with FIXPOINT_BUNDLE, a bundle of the real model."""
import concurrent.futures
import os

import pytest

from serving import api, client, generate, ready_server, request


@pytest.fixture(scope="module")
def real_server(request):
    server = ready_server(request.getfixturevalue("bundle"))
    yield server
    server.close()


def test_real_model_chats(real_server):
    # The template carries the question to the model. Not "Paris": behind this prompt the float model gives its two best first
    # tokens ("The" 15.2 %, "L" 14.0 %) nearly the same probability, so which answer follows depends on the bundle's roundings.
    done = client("chat", "--target", real_server.address, "--message", "What is the capital of France?", "--max-tokens", "40")
    assert done.returncode == 0, done
    assert "France" in done.stdout


def test_real_model_knows_a_capital(real_server):
    # Float: " Paris" 77 %, next " the" 6 %. A margin of 2.5 nats, hundreds of times what quantization moves it by (KL 0.01).
    done = client("generate", "--target", real_server.address, "--prompt", "The capital of France is", "--max-tokens", "4")
    assert done.returncode == 0, done
    assert done.stdout.startswith(" Paris")


def test_real_model_answers_are_the_same_alone_and_beside_others(real_server, api):
    stub = api[1].GenerationStub(real_server.channel)
    prompts = ["The capital of France is", "def fibonacci(n):", "Once upon a time"]

    def ask(number):
        message = request(api, text=prompts[number % 3], max_tokens=16, ignore_eos=True)
        message.sampling.temperature = 0.8 if number % 2 else 0.0
        message.sampling.seed = 3
        return generate(stub, message, timeout=120).ids

    alone = [ask(i) for i in range(6)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == alone * 2


def test_real_model_starts_quickly(real_server):
    ready = real_server.events("ready")[0]
    assert ready["seconds"] < float(os.environ.get("FIXPOINT_START_SECONDS", "5"))
