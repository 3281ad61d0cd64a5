"""The wire contract: buf's lint, and nothing that breaks callers of proto/baseline.binpb."""
import shutil

import pytest

from conftest import ROOT
from deployment import run, tool

PROTO = ROOT / "proto"
GENERATION = "fixpoint/v1/generation.proto"
FIELD = "string system_fingerprint = 4;"  # of GetModelResponse


@pytest.fixture
def buf(tmp_path):
    """Runs buf in a folder; nothing is fetched, nothing left in the home directory."""
    program = tool("buf")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "BUF_CACHE_DIR": str(tmp_path / "cache")}
    return lambda folder, *arguments: run(program, *arguments, cwd=folder, env=environment)


@pytest.fixture
def changed(tmp_path):
    """A copy of proto/ in which a text of generation.proto is another."""
    def change(old, new):
        folder = tmp_path / "proto"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(PROTO, folder)
        text = (folder / GENERATION).read_text()
        assert text.count(old) == 1, old
        (folder / GENERATION).write_text(text.replace(old, new))
        return folder
    return change


BREAKING = ("breaking", "--against", str(PROTO / "baseline.binpb"))


def test_lint(buf):
    done = buf(PROTO, "lint")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_breaks_the_callers_of_the_last_release(buf):
    done = buf(PROTO, *BREAKING)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_lint_finds_a_name(buf, changed):
    assert "lower_snake_case" in buf(changed(FIELD, FIELD.replace("system_finger", "systemFinger")), "lint").stdout


@pytest.mark.parametrize("new, told", [(FIELD.replace("4", "40"), "was deleted"), ("", "was deleted"),
                                       (FIELD.replace("string", "bytes"), "changed type")], ids=["number", "deleted", "type"])
def test_a_break_is_found(buf, changed, new, told):
    done = buf(changed(FIELD, new), *BREAKING)
    assert done.returncode != 0 and told in done.stdout, done


def test_room_to_grow_may_be_used(buf, changed):
    grown = changed("has_constraints = 14;\n  reserved 15 to 29;", "has_constraints = 14;\n  string new_one = 15;\n  reserved 16 to 29;")
    done = buf(grown, *BREAKING)
    assert (done.returncode, done.stdout) == (0, "")
