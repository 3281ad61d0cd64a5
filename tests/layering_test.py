"""The arrows of docs/ARCHITECTURE.md, checked over every #include of our own files."""
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent

# folder -> folders that its files may include (itself always)
ALLOWED = {
    "base": set(),
    "text": {"base"},
    "kernels": {"base"},
    "bundle": {"kernels", "text", "base"},
    "engine": {"bundle", "kernels", "text", "base"},
    "grammar": {"engine", "text", "base"},
    "calibrator": {"engine", "bundle", "kernels", "text", "base"},
    "proto": set(),
    "server": {"proto", "grammar", "engine", "bundle", "kernels", "text", "base"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def sources():
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.h", "*.cc", "*.inc", "*.cu", "*.cuh"],
                            cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [pathlib.PurePath(f) for f in listed if (ROOT / f).exists()]


def test_there_are_sources():
    assert len(sources()) > 20


def test_includes_follow_the_arrows():
    wrong = []
    for source in sources():
        folder = source.parts[0]
        if folder not in ALLOWED:
            continue
        for number, line in enumerate((ROOT / source).read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            target = match.group(1).split("/")[0]
            if target in ALLOWED and target != folder and target not in ALLOWED[folder]:
                wrong.append(f"{source}:{number} includes {match.group(1)}: {folder} may not see {target}")
    assert not wrong, "\n".join(wrong)


def test_includes_are_full_paths():
    wrong = []
    for source in sources():
        for number, line in enumerate((ROOT / source).read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if match and match.group(1).split("/")[0] in ALLOWED and match.group(1).endswith((".h", ".inc")):
                if match.group(1).endswith(".pb.h"):
                    continue
                if not (ROOT / match.group(1)).exists():
                    wrong.append(f"{source}:{number}: no file {match.group(1)}")
    assert not wrong, "\n".join(wrong)


def test_headers_have_pragma_once():
    wrong = [str(s) for s in sources() if s.suffix == ".h" and "#pragma once" not in (ROOT / s).read_text()]
    assert not wrong, wrong
