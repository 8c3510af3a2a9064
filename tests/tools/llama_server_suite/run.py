"""Runs the cases and compares what fails with what is known to differ.

Usage: run.py FOLDER_OF_TESTS [PYTEST_ARGUMENT ...]; with arguments, only what they choose is run.
Ends with 1 if a case fails that isn't in differences.txt, or one that is in it passes.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPORT = Path(os.environ["WORK"]) / "report.xml"


def listed(name):
    lines = (HERE / name).read_text(encoding="utf-8").split("\n")
    # A name may end in a space.
    return [line for line in lines if "::" in line and not line.startswith("#")]


def main():
    folder, chosen = sys.argv[1], sys.argv[2:]
    cases = chosen or listed("cases.txt")
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", "--tb=line",
        f"--timeout={os.environ.get('TIMEOUT', '120')}", f"--junitxml={REPORT}", *cases,
    ]
    # 0 and 1: it ran, and all or some passed. Otherwise it found no such case, or no test at all.
    if subprocess.call(command, cwd=folder) not in (0, 1):
        print(f"{folder} doesn't hold these cases: it should be tools/server/tests of a tree of llama.cpp", file=sys.stderr)
        return 2
    passed, failed = set(), set()
    for case in xml.parse(REPORT).iter("testcase"):
        name = f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}"
        bad = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
        (failed if bad else passed).add(name)
    print(f"{len(passed)} of {len(passed) + len(failed)} pass")
    if chosen:
        return 0
    known = {line.split("\t")[0] for line in listed("differences.txt")}
    # pytest writes some characters of a name in another way than it takes them.
    for name in sorted(failed - known):
        print(f"fails and should pass: {name}")
    for name in sorted(known & passed):
        print(f"passes and is listed as a difference: {name}")
    return 1 if failed - known or known & passed else 0


if __name__ == "__main__":
    sys.exit(main())
