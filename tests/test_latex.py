"""LaTeX as TeX would read it, where no TeX is: environments, columns, escapes; of every shipped table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raz.report.fill import fill_table
from raz.report.render import latex
from raz.report.tables import table_report
from raz.spec.ablation_yaml import load_table
from raz.utils.shipped import shipped
from tests.test_report import NASTY, zoomed


def faults_of(text: str) -> list[str]:
    """What TeX would stumble over: environments that do not nest, rows of another width than their columns, letters
    that mean something to TeX and stand bare, braces that do not match. Independent of how the text is written."""
    faults, open_ones, columns = [], list[str](), 0
    for number, line in enumerate(text.splitlines(), 1):
        code = re.split(r"(?<!\\)%", line)[0]  # what follows a bare % is a comment
        if line.startswith("%"):
            continue
        if code != line:
            faults.append(f"{number}: a comment inside the text")
        bare = re.sub(r"\\.", "", code)  # without what is escaped, and without commands' first letters
        if re.search(r"[#&_^~<>\"±−]", bare.replace("&", "", bare.count("&") if r"\\" in code else 0)):
            faults.append(f"{number}: a bare special letter: {code}")
        if bare.count("{") != bare.count("}") or bare.count("$") % 2:
            faults.append(f"{number}: braces or dollars that do not match: {code}")
        for what, name, spec in re.findall(r"\\(begin|end)\{(\w+)\}(?:\{([lrc]+)\})?", code):
            if what == "begin":
                open_ones.append(name)
                columns = len(spec) if name == "tabular" else columns
            elif not open_ones or open_ones.pop() != name:
                faults.append(f"{number}: \\end{{{name}}} closes another")
        cells = len(re.findall(r"(?<!\\)&", code)) + 1
        if code.endswith(r" \\") and cells != columns:
            faults.append(f"{number}: a row of {cells} in {columns} columns")
        if open_ones[-1:] == ["tabular"] and not re.search(r"\\(begin|(top|mid|bottom)rule)|\\\\$", code):
            faults.append(f"{number}: a row that does not end: {code}")
    return [*faults, *(f"{name} is not closed" for name in open_ones)]


@pytest.mark.parametrize("name", sorted(shipped("ablations")))
def test_latex_of_every_shipped_table_is_well_formed(name: str, tmp_path: Path) -> None:
    table = load_table(shipped("ablations")[name])
    for profile in table.profiles:
        report = table_report(fill_table(table, table.profile(profile), tmp_path, lookup=zoomed), "run it")
        text = latex(report)
        assert faults_of(text) == []
        assert text.count(r"\begin{tabular}") == len(report.sheets)


def test_latex_that_is_wrong_is_found_wrong() -> None:
    assert faults_of(latex(NASTY)) == []
    row = "\\begin{tabular}{lr}\n%s\n\\end{tabular}"
    for wrong in (r"a & b & c \\", r"a_b & c \\", r"5 % & c \\", r"{a & c \\", r"a & c", r"a $ & c \\"):
        assert faults_of(row % wrong) if "%" not in wrong else faults_of(row.replace("%s", wrong)), wrong
    assert faults_of(row % r"a\_b & 5\% \\") == []
    assert faults_of("\\begin{table}\n\\end{tabular}") != []
