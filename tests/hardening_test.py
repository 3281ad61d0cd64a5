"""How the programs are linked, read back from the files: hardening, and the build id that `--version` tells."""
import re
import subprocess

import pytest

from conftest import BIN

PROGRAMS = ("fixpoint-server", "fixpoint", "fixpoint-calibrate")


def readelf(flag, program):
    if not program.exists():
        pytest.skip(f"{program} is not built")
    return subprocess.run(["readelf", "--wide", flag, program], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_hardened(name):
    program = BIN / name
    assert re.search(r"Type:\s+DYN", readelf("-h", program)), "position independent"
    segments = readelf("-l", program)
    assert "GNU_RELRO" in segments
    assert re.search(r"GNU_STACK.* RW ", segments), "no executable stack"
    assert not re.search(r"LOAD.* RWE ", segments), "nothing is writable and executable"
    dynamic = readelf("-d", program)
    assert "BIND_NOW" in dynamic and "NOW PIE" in dynamic
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    symbols = readelf("--dyn-syms", program)
    assert "__stack_chk_fail" in symbols
    assert re.search(r"__(memcpy|snprintf|vsnprintf|read|pread|sprintf_)\w*chk", symbols), "fortified"
    if "X86-64" in readelf("-h", program):
        # Landing pads for control-flow enforcement. Not the note that asks for it: Debian's start-up files have none, and one object
        # without takes it from the whole program.
        assert program.read_bytes().count(bytes.fromhex("f30f1efa")) > 500


def test_the_server_tells_its_build():
    program = BIN / "fixpoint-server"
    build = re.search(r"Build ID: ([0-9a-f]+)", readelf("-n", program))[1]
    lines = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert re.fullmatch(r"fixpoint-server \d+\.\d+\.\d+", lines[0])
    assert lines[1] == f"build {build}"
    assert re.fullmatch(r"numerics \d+", lines[2])
    assert len(lines) == 3


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_do_not_tell_where_they_were_built(name):
    """Builds in two folders are equal: scripts/release.sh --verify compares them, which takes too long for this."""
    program = BIN / name
    if not program.exists():
        pytest.skip(f"{program} is not built")
    content = program.read_bytes()
    for place in (BIN.parent.parent.parent, "../../base", "../../server", "../../engine"):  # absolute, and as ccache makes it
        assert f"{place}/".encode() not in content, place
