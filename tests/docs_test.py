"""Files that README and docs name exist, and no tracked file carries a path or name of somebody's machine."""
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"`([A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)+\.(?:h|cc|inc|md|proto|sh|py|json|txt|cmake))`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize("doc", DOCS, ids=lambda d: d.name)
def test_named_files_exist(doc):
    text = doc.read_text()
    missing = {name for name in NAMED.findall(text) if not name.startswith("build/") and not (ROOT / name).exists()}
    missing |= {link for link in LINK.findall(text) if not (doc.parent / link).exists()}
    assert not missing, sorted(missing)


def test_no_machine_paths():
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                            check=True).stdout.split()
    bad = re.compile("/" + "work/|/" + "root/|/" + "farm/")
    wrong = []
    for name in listed:
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        wrong += [f"{name}:{i}" for i, line in enumerate(text.splitlines(), 1) if bad.search(line)]
    assert not wrong, wrong
