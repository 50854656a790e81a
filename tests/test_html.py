"""The page in a real browser: no error and no network request, tables sort, numbers show where they come from."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from raz.report.figures.style import figure
from raz.report.html import page
from raz.report.layout import Report, TextTable

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"

# Runs in the page after it is drawn: clicks as a reader does, and writes its result where --dump-dom shows it.
PROBE = """
<script>
window.addEventListener("error", (e) => problems.push("error: " + e.message));
window.addEventListener("unhandledrejection", (e) => problems.push("rejected: " + e.reason));
document.addEventListener("securitypolicyviolation", (e) => problems.push("asked for " + e.blockedURI));
const problems = [];
window.addEventListener("load", () => setTimeout(async () => {
  const column = (n) => [...document.querySelectorAll("#sheet-0 tbody tr")].map((row) => row.children[n].textContent);
  const result = { first: column(0), rows: column(0).length };
  document.querySelectorAll("#sheet-0 th button")[1].click();
  result.up = column(1);
  document.querySelectorAll("#sheet-0 th button")[1].click();
  result.down = column(1);
  document.querySelector("#sheet-0 td button")?.click();
  result.dialog = document.querySelector("dialog")?.textContent;
  document.querySelector("dialog")?.close();
  const more = document.querySelector(".more:not([hidden])");
  if (more) { more.click(); result.all = column(0).length; }
  for (let i = 0; i < 100 && !document.querySelector(".figure svg") && document.querySelector(".figure"); i++) {
    document.querySelector(".figure").scrollIntoView();
    await new Promise((go) => setTimeout(go, 100));
  }
  result.drawn = document.querySelectorAll(".figure svg.main-svg").length;
  result.ready = document.documentElement.dataset.ready;
  result.title = document.title;
  result.requests = performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !/^(data|blob):/.test(n));
  result.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  result.problems = problems;
  const out = document.createElement("pre");
  out.id = "result";
  out.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(result))));
  document.body.append(out);
}, 50));
</script>
"""


def probe(text: str, folder: Path, size: str = "1200,900") -> dict[str, object]:
    """What PROBE reports of the page in a browser with a window of this size."""
    path = folder / "page.html"
    path.write_text(text.replace("<body>", "<body>" + PROBE), encoding="utf-8")
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile",
         f"--window-size={size}", "--virtual-time-budget=30000", "--enable-logging=stderr", "--v=0", "--dump-dom",
         path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="result">([^<]*)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    import base64

    result: dict[str, object] = json.loads(base64.b64decode(found[1]))
    result["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return result


def report(**more: object) -> Report:
    lines = (("loc_2", "9.5 ± 0.4"), ("density", "10.1"), ("loc_1", "-"), (HOSTILE, "−3.0"), ("big", "100.25"))
    record = {
        "name": "cell", "row": HOSTILE, "set": {"depth": 2}, "mean": 9.5,
        "trials": [{"seed": 7, "value": 9.5, "score": "abc123", "commit": "deadbeef"}],
    }  # fmt: skip
    sheet = TextTable("Table " + HOSTILE, ("row", "MAE"), lines, cells={(0, 1): "cell"})
    rows = [{"x": 1, "y": 2}]
    figures = (
        figure("A " + HOSTILE, rows, [{"type": "scatter", "x": [1, 2], "y": [2, 1], "name": HOSTILE}], "x", "y"),
    )
    fields: dict[str, object] = {"figures": figures, "facts": {"command": "raz-sweep run it"}, **more}
    return Report(HOSTILE, (sheet,), (HOSTILE,), (record,), **fields)  # type: ignore[arg-type]


@pytest.mark.long
@browser
def test_the_page_works_as_a_reader_uses_it(tmp_path: Path) -> None:
    result = probe(page(report()), tmp_path)
    assert (result["ready"], result["problems"], result["console"], result["requests"]) == ("yes", [], [], [])
    assert result["title"] == HOSTILE  # as text: it did not run
    assert result["up"] == ["−3.0", "9.5 ± 0.4", "10.1", "100.25", "-"]  # by number, what is empty below
    assert result["down"] == ["100.25", "10.1", "9.5 ± 0.4", "−3.0", "-"]
    for word in ("abc123", "deadbeef", "7", '{"depth":2}', "raz-sweep run it"):
        assert word in str(result["dialog"])
    assert int(str(result["drawn"])) >= 1


@pytest.mark.long
@browser
def test_ten_thousand_trials_open_and_fit_a_phone(tmp_path: Path) -> None:
    from raz.report.study import study_report
    from tests.test_report import record as trial

    trials = [
        trial(n, "complete" if n % 3 else "pruned", 10 + (n * 7919 % 1000) / 100 if n % 3 else None)
        for n in range(10_000)
    ]  # fmt: skip
    whole = study_report("s", trials, {"val.mae": "minimize"}, all_trials=True)  # type: ignore[arg-type]
    sheets = (whole.sheets[-1], *whole.sheets[:-1])
    text = page(Report(whole.title, sheets, whole.notes, whole.records, whole.facts, figures=report().figures))
    assert len(text.encode()) < 8e6
    result = probe(text, tmp_path, "390,800")
    assert (result["problems"], result["console"], result["rows"], result["all"]) == ([], [], 200, 10_000)
    assert result["wide"] == 0  # the page itself does not scroll sideways; its tables do
    assert str(result["dialog"]).startswith("trial ")


def test_nothing_of_a_store_becomes_markup_and_no_address_is_outside() -> None:
    text = page(report())
    assert "<script>document.title" not in text
    assert "<img" not in text
    assert text.count("</script>") == text.count("<script")
    head = text.partition("</head>")[0]
    assert "default-src 'none'" in head
    assert re.findall(r'(?:src|href)="([^"]*)"', head) == ["data:,"]


def test_a_page_without_figures_carries_no_library() -> None:
    small = page(report(figures=()))
    assert 'id="plotly"' not in small
    assert len(small) < 40_000
