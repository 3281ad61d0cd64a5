"""Training through the command line on a tiny random checkpoint: killed and resumed, interrupted, a full disk, divergence, tracks,
the report."""
import json
import pathlib
import signal
import subprocess

import pytest

pytest.importorskip("numpy", reason="numpy is not installed")
from eval_cli_test import random_weights, write_checkpoint  # noqa: E402

STEPS = 40


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, calibrate):
    folder = tmp_path_factory.mktemp("train")
    checkpoint = write_checkpoint(folder / "tiny", random_weights(7))
    text = folder / "text.txt"
    words = ("the old stone bridge over a slow brown river carries carts and cattle to market every autumn morning before the fog "
             "lifts from the meadows").split()
    state, lines = 1, []
    for _ in range(2500):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        lines.append(words[state >> 16 & 0xFF if (state >> 16 & 0xFF) < len(words) else (state >> 8) % len(words)])
    text.write_text(" ".join(lines))
    return folder, checkpoint, text


def command(calibrate, tiny, output, *more):
    _, checkpoint, text = tiny
    steps = [] if "--steps" in more else ["--steps", str(STEPS)]
    return [str(calibrate), str(checkpoint), "-o", str(output), "--corpus", str(text), *steps, "--batch", "2",
            "--micro-batch", "1", "--progress", "json", "--checkpoint-seconds", "0", *more]


def run(*arguments, **options):
    result = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=600, **options)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def figures(calibrate, bundle):
    result = subprocess.run([str(calibrate), "inspect", str(bundle), "--json"], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def reference(calibrate, tiny):
    output = tiny[0] / "reference.fixpoint"
    return output, run(calibrate, tiny, output)


def steps_of(lines):
    return [line for line in lines if "step" in line]


def test_every_step_is_a_json_line_and_the_report_is_written(reference):
    output, lines = reference
    steps = steps_of(lines)
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert all(line["loss"] > 0 and line["gradient_norm"] > 0 for line in steps)
    assert any("held_out" in line for line in steps)
    report = pathlib.Path(f"{output}.report.html").read_text()
    assert report.startswith("<!doctype html>") or report.startswith("<!DOCTYPE html>")
    assert not pathlib.Path(f"{output}.checkpoint").exists()


def test_the_same_seed_gives_the_same_bundle_and_another_does_not(calibrate, tiny, reference):
    again, other = tiny[0] / "again.fixpoint", tiny[0] / "other.fixpoint"
    run(calibrate, tiny, again)
    run(calibrate, tiny, other, "--seed", "1")
    digest = figures(calibrate, reference[0])["golden_digest"]
    assert figures(calibrate, again)["golden_digest"] == digest
    assert figures(calibrate, other)["golden_digest"] != digest


def wait_for_step(process, step):
    for line in process.stdout:
        record = json.loads(line)
        if record.get("step", 0) >= step:
            return record["step"]
    pytest.fail(f"ended before step {step}")


def start(*arguments):
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_a_bundle_that_is_there_can_be_left(calibrate, tiny, reference, tmp_path):
    output = tmp_path / "there.fixpoint"
    output.write_bytes(reference[0].read_bytes())
    inode = output.stat().st_ino
    done = subprocess.run(command(calibrate, tiny, output, "--skip-existing"), capture_output=True, text=True)
    assert done.returncode == 0 and "nothing to do" in done.stderr, done
    assert output.stat().st_ino == inode
    output.write_bytes(reference[0].read_bytes()[:-1])  # half written: made again
    run(calibrate, tiny, output, "--skip-existing")
    assert figures(calibrate, output)["golden_digest"] == figures(calibrate, reference[0])["golden_digest"]


def test_killed_and_resumed_ends_like_an_undisturbed_run(calibrate, tiny, reference):
    output = tiny[0] / "killed.fixpoint"
    for step in (3, 20):
        process = start(calibrate, tiny, output, *(["--resume"] if step > 3 else []))
        wait_for_step(process, step)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not output.exists()
    lines = run(calibrate, tiny, output, "--resume")
    assert any("resumed behind step" in line.get("message", "") for line in lines)
    assert steps_of(lines)[0]["step"] > 20
    assert figures(calibrate, output)["golden_digest"] == figures(calibrate, reference[0])["golden_digest"]


def test_an_interrupt_keeps_the_best_and_can_be_resumed(calibrate, tiny, reference):
    output = tiny[0] / "stopped.fixpoint"
    process = start(calibrate, tiny, output, "--steps", "4000", "--patience", "100000")
    wait_for_step(process, 5)
    process.send_signal(signal.SIGINT)
    rest = [json.loads(line) for line in process.stdout]
    assert process.wait(timeout=300) == 0
    assert any("--resume" in line.get("message", "") for line in rest)
    training = figures(calibrate, output)["provenance"]["training"]
    assert training["stopped_by"] == "interrupted" and training["steps"] < 4000
    assert pathlib.Path(f"{output}.checkpoint").exists()


def test_a_checkpoint_of_another_run_is_refused(calibrate, tiny):
    output = tiny[0] / "foreign.fixpoint"
    process = start(calibrate, tiny, output)
    wait_for_step(process, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = subprocess.run(command(calibrate, tiny, output, "--resume", "--gain-rate", "0.003"), capture_output=True, text=True,
                            timeout=600, check=False)
    assert result.returncode == 1
    assert "checkpoint of another run" in result.stderr, result.stderr


def test_a_full_disk_at_a_checkpoint_is_said_and_training_goes_on(calibrate, tiny):
    mount = tiny[0] / "small"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(mount)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no small disk to fill: {made.stderr.strip()}")
    try:
        output = tiny[0] / "full.fixpoint"
        lines = run(calibrate, tiny, output, "--checkpoint", str(mount / "c"))
        messages = [line["message"] for line in lines if "message" in line]
        assert any("checkpoint not written" in m and "No space left" in m for m in messages), messages
        assert len(steps_of(lines)) == STEPS
        assert output.exists()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_loss_that_diverges_stops_and_keeps_the_best(calibrate, tiny):
    output = tiny[0] / "wild.fixpoint"
    run(calibrate, tiny, output, "--gain-rate", "1", "--scale-rate", "1")
    provenance = figures(calibrate, output)["provenance"]
    assert provenance["training"]["stopped_by"] == "diverged"
    assert "diverged" in pathlib.Path(f"{output}.report.html").read_text()
    held_out = provenance["held_out"]
    assert held_out["integer"]["kl_mean"] < 2 * held_out["untrained"]["kl_mean"]


def test_the_adapted_track_is_reported_beside_its_float_control(calibrate, tiny):
    output = tiny[0] / "adapted.fixpoint"
    run(calibrate, tiny, output, "--objective", "ce", "--gain-rate", "0.01")
    provenance = figures(calibrate, output)["provenance"]
    assert provenance["settings"]["budget"] == 0.003  # unless another is asked for
    held_out = provenance["held_out"]
    # The text has only twenty words: both learn it.
    assert held_out["integer"]["relative_percent"] < -5
    assert held_out["float_control"]["relative_percent"] < -5
    control = provenance["training"]["float_control"]
    assert control["gap_percent"] == pytest.approx(
        100 * (held_out["integer"]["perplexity"] / held_out["float_control"]["perplexity"] - 1), abs=1e-6)


@pytest.mark.parametrize("options", [["--granularity", "tensor"], ["--vectors", "folded"], ["--int16-inputs", "none"],
                                     ["--rounding", "nearest"], ["--objective", "none"], ["--prefix-rate", "0.01"]])
def test_every_way_gives_a_bundle_that_verifies(calibrate, tiny, options):
    output = tiny[0] / f"way{len(list(tiny[0].iterdir()))}.fixpoint"
    run(calibrate, tiny, output, *options)
    assert subprocess.run([str(calibrate), "verify", str(output)], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("options, message", [
    (["--objective", "kld"], "--objective"), (["--steps", "0"], "--steps"), (["--gain-rate", "-1"], "--gain-rate"),
    (["--device", "tpu"], "tpu"), (["--report", "/no/such/folder/x.html"], "/no/such/folder")])
def test_bad_options_are_named(calibrate, tiny, options, message):
    result = subprocess.run(command(calibrate, tiny, tiny[0] / "x.fixpoint", *options), capture_output=True, text=True, timeout=600,
                            check=False)
    assert result.returncode in (1, 2)
    assert message in result.stderr, result.stderr


