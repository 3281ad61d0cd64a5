"""Constrained output with a real vocabulary: random walks under the masks of many schemas, written by hand and at random, judged by the
`jsonschema` package; expressions judged by `re`. About a minute.

FIXPOINT_BUNDLE: a bundle (its vocabulary is used). FIXPOINT_BIN: folder with grammar_probe, default build/release/bin.
"""

import json
import random
import re
import subprocess

import pytest

from conftest import BIN

jsonschema = pytest.importorskip("jsonschema")

SCHEMAS = [
    {},
    {"type": "object"},
    {"type": "array", "items": {"type": "number"}},
    {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
                                      "email": {"type": "string", "format": "email"}}, "required": ["name", "age"],
     "additionalProperties": False},
    {"type": "object", "properties": {"answer": {"enum": ["yes", "no", "maybe"]}, "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                                      "reasons": {"type": "array", "items": {"type": "string", "maxLength": 80}, "minItems": 1, "maxItems": 4}},
     "required": ["answer", "confidence", "reasons"]},
    {"$defs": {"node": {"type": "object", "properties": {"value": {"type": "integer"},
                                                         "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
                        "required": ["value"]}}, "$ref": "#/$defs/node"},
    {"anyOf": [{"type": "object", "properties": {"kind": {"const": "circle"}, "r": {"type": "number", "exclusiveMinimum": 0}},
                "required": ["kind", "r"]},
               {"type": "object", "properties": {"kind": {"const": "box"}, "w": {"type": "integer"}, "h": {"type": "integer"}},
                "required": ["kind", "w", "h"]}, {"type": "null"}]},
    {"type": "object", "properties": {"id": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}},
    {"type": "string", "pattern": "^[A-Z][a-z]+( [A-Z][a-z]+)*$"},
    {"type": "string", "pattern": "\\d{3}"},
    {"type": "string", "minLength": 3, "maxLength": 12},
    {"type": "object", "properties": {"when": {"type": "string", "format": "date-time"}, "day": {"type": "string", "format": "date"},
                                      "ip": {"type": "string", "format": "ipv4"}, "key": {"type": "string", "format": "uuid"}}},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer", "exclusiveMinimum": -5, "exclusiveMaximum": 5}],
     "items": {"type": ["boolean", "null"]}, "minItems": 2, "maxItems": 5},
]


@pytest.fixture(scope="module")
def probe(bundle):
    program = BIN / "grammar_probe"
    if not program.exists():
        pytest.skip(f"{program} is not built")
    process = subprocess.Popen([program, bundle], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")

    def ask(kind, text, walks, seed):
        process.stdin.write(json.dumps({"kind": kind, "text": text, "walks": walks, "seed": seed}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, "grammar_probe ended early"
        return json.loads(line)

    yield ask
    process.stdin.close()
    process.wait()


def check_values(schema, answer):
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for text in answer["texts"]:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise AssertionError(f"{schema}: {error}: {text}") from error
        errors = list(validator.iter_errors(value))
        assert not errors, f"{schema}: {text}: {errors[0].message}"


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:50])
def test_walks_give_values_of_the_schema(probe, schema):
    answer = probe("schema", json.dumps(schema), 25, 1)
    assert "error" not in answer, answer
    check_values(schema, answer)
    print({key: value for key, value in answer.items() if key != "texts"})
    assert len(set(answer["texts"])) > 5


def test_any_object(probe):
    for text in probe("object", "", 25, 2)["texts"]:
        assert isinstance(json.loads(text), dict), text


def random_schema(rng, depth):
    """One of the supported kinds, with some annotations."""
    scalars = [
        lambda: {"type": "string"},
        lambda: {"type": "string", "minLength": rng.randrange(3), "maxLength": rng.randrange(3, 30)},
        lambda: {"type": "string", "pattern": rng.choice(["^a+b?$", "x", "^[^\"]{2,4}$", "^(\\w|\\s)*$", "\\\\", "^.$|^..$", "[0-9]\\.?$"])},
        lambda: {"type": "integer"},
        lambda: {"type": "integer", "minimum": rng.randrange(-2000, 100), "maximum": rng.randrange(100, 3000)},
        lambda: {"type": "number", rng.choice(["minimum", "exclusiveMinimum"]): rng.randrange(-20, 3),
                 rng.choice(["maximum", "exclusiveMaximum"]): rng.randrange(3, 200)},
        lambda: {"type": rng.sample(["string", "number", "null", "boolean", "object"], rng.randrange(1, 4))},
        lambda: {"enum": rng.sample([1, "a", "é\n\"", None, True, 2.5, {"k": [1, "x"]}, [], "ab"], rng.randrange(1, 5))},
        lambda: {"const": rng.choice(["c", 7, None, "\u2028/\\"])},
        lambda: {},
    ]
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(scalars)()
    kind = rng.randrange(4)
    if kind == 0:
        names = rng.sample(["a", "b", "ab", "é", "x y", "q\"uote", "long_name", "n/m~"], rng.randrange(6))
        schema = {"type": "object", "properties": {name: random_schema(rng, depth - 1) for name in names},
                  "required": [name for name in names if rng.random() < 0.5], "description": "x"}
        extra = rng.randrange(3)
        if extra:
            schema["additionalProperties"] = [False, random_schema(rng, depth - 1)][extra - 1]
        return schema
    if kind == 1:
        low = rng.randrange(3)
        schema = {"type": "array", "items": random_schema(rng, depth - 1)}
        if rng.random() < 0.6:
            schema["minItems"] = low
        if rng.random() < 0.6:
            schema["maxItems"] = low + rng.randrange(4)
        return schema
    if kind == 2:
        return {rng.choice(["anyOf", "anyOf", "oneOf"]): [random_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]}
    return {"type": "array", "prefixItems": [random_schema(rng, depth - 1) for _ in range(rng.randrange(1, 3))]}


def as_any_of(schema):
    """oneOf as the grammar reads it."""
    if isinstance(schema, dict):
        return {("anyOf" if key == "oneOf" else key): as_any_of(value) for key, value in schema.items()}
    return [as_any_of(value) for value in schema] if isinstance(schema, list) else schema


def test_random_schemas(probe):
    rng = random.Random(5)
    for seed in range(250):
        schema = random_schema(rng, 3)
        answer = probe("schema", json.dumps(schema, ensure_ascii=seed % 2 == 0), 4, seed)
        assert "error" not in answer, f"{schema}: {answer}"
        check_values(as_any_of(schema), answer)


@pytest.mark.parametrize("pattern", ["(yes|no|maybe)", "[A-Z]{2}-\\d{4,6}", "(\\w+ ){3,8}\\w+\\.", "[^\\x00-\\x1f]{1,40}",
                                     "\\{\"a\": (true|false), \"b\": \\d+\\}", "(ab|abc|abcd)*x", "é{2,}|日本(語)?"])
def test_walks_match_the_expression(probe, pattern):
    answer = probe("regex", pattern, 25, 3)
    assert "error" not in answer, answer
    for text in answer["texts"]:
        assert re.fullmatch(pattern, text), text


def test_errors_are_told(probe):
    assert "look-around" in probe("regex", "a(?=b)", 1, 0)["error"]
    assert "#/not: is not supported" in probe("schema", '{"not": {}}', 1, 0)["error"]
