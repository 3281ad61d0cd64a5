"""A guard against slow-downs that noise cannot hide: instructions of the forward pass (prefill and decode of the golden prompts on a tiny
model), counted by valgrind's callgrind. Counts do not depend on how busy the machine is. Valgrind knows no AVX-512 and no AMX, so the
portable and the avx2 level stand for the rest. After a change that is meant, put the printed counts into EXPECTED and say why."""
import os
import re
import shutil
import subprocess

import pytest

from conftest import BIN

# Debian 12's gcc 12.2, -O3.
EXPECTED = {"portable": 400_860_000, "avx2": 194_330_000}
TOLERANCE = 0.03


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("count") / "tiny.fixpoint"
    subprocess.run([BIN / "make_test_bundle", path, "300", "512", "4"], check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.mark.parametrize("level", EXPECTED)
def test_the_forward_pass_takes_as_many_instructions_as_before(bundle, level):
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    if os.uname().machine != "x86_64":
        pytest.skip("counted on x86-64")
    done = subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
                           "--toggle-collect=fixpoint::CpuExecutor::Forward*", BIN / "fixpoint-calibrate", "verify", bundle, "--threads", "1"],
                          capture_output=True, text=True, timeout=600, env={**os.environ, "FIXPOINT_ISA": level})
    assert f"({level}, 1 threads)" in done.stdout, done
    count = int(re.search(r"Collected : (\d+)", done.stderr)[1])
    print(f"{level}: {count:,} instructions")
    assert count > 10_000_000, "nothing was counted"
    change = count / EXPECTED[level] - 1
    assert abs(change) <= TOLERANCE, f"{count:,} instructions, {100 * change:+.1f} % against {EXPECTED[level]:,}"
