"""Tables: reading a file, messages about a wrong one, and that the shipped tables print the paper's numbers."""

from __future__ import annotations

import pytest

from raz.config import PRESETS, configure, diff
from raz.errors import RazError
from raz.spec.ablation import AblationTable
from raz.spec.ablation_yaml import load_table, parse_table
from raz.utils.shipped import shipped
from raz.utils.yamlfile import parse

GOOD = """\
table: small_one
metrics: [test.mae, test.rmse]
seeds: [0, 3]
profiles:
  toy: {base: {preset: tiny, set: {zooming.k_z: 3}}, datasets: [toy]}
  paper: {base: {preset: paper}, datasets: [shanghaitech_a, ucf_qnrf]}
rows:
  one: {set: {depth: 1}, paper: [[75.2, 133.0], [135, 246]]}
  two: {set: {depth: 2, fusion.rule: average}, paper: {ucf_qnrf: [118, null]}}
  bare: {}
"""


def table_of(text: str, **settings: object) -> AblationTable:
    return parse_table(parse(text, "t.yaml", strict=False), settings)


def complaint(text: str, **settings: object) -> str:
    with pytest.raises(RazError) as caught:
        table_of(text, **settings)
    return str(caught.value)


def test_a_table_says_what_its_file_says() -> None:
    table = table_of(GOOD)
    assert (table.table, table.metrics, table.seeds) == ("small_one", ("test.mae", "test.rmse"), (0, 3))
    assert table.splits == ("test",)
    assert table.row("one").paper == {
        "shanghaitech_a": {"test.mae": 75.2, "test.rmse": 133.0},
        "ucf_qnrf": {"test.mae": 135, "test.rmse": 246},
    }
    assert table.row("two").paper == {"ucf_qnrf": {"test.mae": 118}}
    assert table.printed_datasets == ("shanghaitech_a", "ucf_qnrf")
    assert table.profile().name == "toy"


def test_a_trial_differs_from_its_base_by_its_row_alone() -> None:
    table = table_of(GOOD)
    profile = table.profile("toy")
    trials = {(t.row, t.seed): t for t in table.trials(profile)}
    assert set(trials) == {(row, seed) for row in ("one", "two", "bare") for seed in (0, 3)}
    changed = diff(PRESETS["tiny"], trials["two", 3].config)
    assert {name: new for name, (_, new) in changed.items()} == {
        "zooming.k_z": 3, "seed": 3, "fusion.rule": "average",
    }  # fmt: skip
    assert changed.keys() | {"depth"} == {"zooming.k_z", "seed", "fusion.rule", "depth"}  # tiny has depth 2 already
    assert trials["one", 0].config.depth == 1
    assert [t.dataset for t in table.trials(table.profile("paper"))] == ["shanghaitech_a"] * 6 + ["ucf_qnrf"] * 6


def test_a_profile_may_have_seeds_of_its_own() -> None:
    table = table_of(GOOD.replace("ucf_qnrf]}\nrows", "ucf_qnrf], seeds: [0, 1, 2, 4]}\nrows"))
    assert (table.profile("toy").seeds, table.profile("paper").seeds) == ((0, 3), (0, 1, 2, 4))
    before, paper = table_of(GOOD), table.profile("paper")
    assert list(table.trials(table.profile("toy"))) == list(before.trials(before.profile("toy")))
    trials = list(table.trials(paper))
    assert [trial.seed for trial in trials if (trial.row, trial.dataset) == ("one", "ucf_qnrf")] == [0, 1, 2, 4]
    # a trial's configuration, and so its keys, do not say how many seeds stand beside it
    shared = [trial for trial in before.trials(before.profile("paper")) if trial.seed == 0]
    assert shared == [trial for trial in trials if trial.seed == 0]


def test_settings_go_on_the_profile_that_is_asked_for() -> None:
    published = PRESETS["paper"].attention.sigma_z
    for asked, changed in ((None, "toy"), ("toy", "toy"), ("paper", "paper"), ("none", "")):
        table = parse_table(parse(GOOD, "t.yaml", strict=False), {"attention.sigma_z": published + 2}, asked)
        for name, profile in table.profiles.items():
            assert (profile.base.attention.sigma_z != table_of(GOOD).profiles[name].base.attention.sigma_z) is (
                name == changed
            )
    # a narrow base cannot take pretrained weights, and is not asked to beside a wide one that can
    weights = {"backbone.weights": "imagenet"}
    assert parse_table(parse(GOOD, "t.yaml"), weights, "paper").profiles["paper"].base.backbone.weights == "imagenet"
    with pytest.raises(RazError, match="expected 1 with pretrained weights"):
        parse_table(parse(GOOD, "t.yaml"), weights, "toy")


BAD = [
    (
        "table: t\n",
        "t.yaml:1: metrics is missing\nt.yaml:1: profiles is missing\nt.yaml:1: rows is missing",
    ),
    (
        GOOD.replace("seeds:", "seds:"),
        "t.yaml:3: unknown key 'seds'\n  try: did you mean seeds?",
    ),
    (
        GOOD.replace("small_one", "Small One"),
        "t.yaml:1: table is 'Small One', expected a name of a-z, 0-9, _ and -\n  try: recurrence",
    ),
    (
        GOOD.replace("test.rmse", "test.rmes"),
        "t.yaml:2: unknown metric 'test.rmes'\n  try: did you mean test.rmse",
    ),
    (
        GOOD.replace("[test.mae, test.rmse]", "[test.mae, test.map@7]"),
        "t.yaml:2: test.map@7: profile toy scores sigma 40, 20, 5 only\n"
        "  try: metrics.sigmas: [40, 20, 5, 7] under profiles.toy.base.set",
    ),
    (
        GOOD.replace("[test.mae, test.rmse]", "[test.f1@8, test.f1_q4@6]"),
        "t.yaml:2: test.f1_q4@6: profile toy scores radius 8, 4 only\n"
        "  try: metrics.radii: [8, 4, 6] under profiles.toy.base.set",
    ),
    (
        GOOD.replace("[0, 3]", "[0, -1, 0, true]"),
        "t.yaml:3: seeds has -1, expected a whole number from 0 on\n"
        "t.yaml:3: seeds has 0 twice\n  try: leave one out\n"
        "t.yaml:3: seeds has true, expected a whole number from 0 on",
    ),
    (
        GOOD.replace("[toy]", "[toy], seeds: [1, 1]").replace("ucf_qnrf]}", "ucf_qnrf], seeds: 2}"),
        "t.yaml:5: profiles.toy.seeds has 1 twice\n  try: leave one out\n"
        "t.yaml:6: profiles.paper.seeds is 2, expected a list\n  try: [0, 1, 2]",
    ),
    (
        GOOD.replace("[toy]", "[toi]"),
        "t.yaml:5: unknown data set 'toi'\n  try: did you mean toy?",
    ),
    (
        GOOD.replace("preset: tiny", "preset: tyny"),
        "t.yaml:5: profiles.toy.base.preset is 'tyny', expected one of paper, small, tiny\n  try: did you mean tiny?",
    ),
    (
        GOOD.replace("{zooming.k_z: 3}", "{seed: 3}"),
        "t.yaml:5: profiles.toy.base sets seed\n  try: use seeds",
    ),
    (
        GOOD.replace("depth: 1}", "dept: 1, seed: 2}"),
        "t.yaml:8: unknown parameter 'dept'\n  try: did you mean depth",
    ),
    (
        GOOD.replace("depth: 1}", "depth: many}"),
        "t.yaml:8: depth is 'many', expected a whole number",
    ),
    (
        GOOD.replace("depth: 1}", "depth: 9}"),
        "t.yaml:8: depth is 9, expected 1 to 8 passes (profile toy)",
    ),
    (
        GOOD.replace("rule: average", "rule: averag"),
        "t.yaml:9: fusion.rule is 'averag', expected one of grid, average, density, localization\n"
        "  try: did you mean average?",
    ),
    (
        GOOD.replace("[[75.2, 133.0], [135, 246]]", "[[75.2, 133.0]]"),
        "t.yaml:8: rows.one.paper has 1 lists, expected 2: shanghaitech_a, ucf_qnrf\n"
        "  try: write null for a data set without printed numbers",
    ),
    (
        GOOD.replace("[135, 246]", "[135]"),
        "t.yaml:8: rows.one.paper has 1 numbers for ucf_qnrf, expected 2: test.mae, test.rmse\n"
        "  try: write null for a number that is not printed",
    ),
    (
        GOOD.replace("[135, 246]", "[135, high]"),
        "t.yaml:8: rows.one.paper.1 has 'high', expected a number for ucf_qnrf or null",
    ),
    (
        GOOD.replace("{ucf_qnrf: [118, null]}", "{ucf_qnr: [118, null]}"),
        "t.yaml:9: rows.two.paper: unknown data set 'ucf_qnr'\n  try: did you mean ucf_qnrf?",
    ),
    (
        GOOD + "misprints:\n  - {row: one, dataset: shanghaitech_b, metric: test.mae, note: odd}\n",
        "t.yaml:12: misprints: row one has no printed test.mae of shanghaitech_b",
    ),
    (
        GOOD + "misprints:\n  - {row: won, dataset: ucf_qnrf, metric: test.mae, note: odd}\n",
        "t.yaml:12: misprints: no row 'won'\n  try: did you mean two or one?",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_faults_are_reported_with_their_lines(text: str, message: str) -> None:
    assert complaint(text).startswith(message)


def test_all_faults_are_told_at_once_in_the_order_of_the_lines() -> None:
    text = GOOD.replace("test.rmse]", "test.rmes]").replace("depth: 1}", "depth: many}").replace("[toy]", "[toi]")
    places = [line.partition(": ")[0] for line in complaint(text).splitlines() if line.startswith("t.yaml")]
    assert places == ["t.yaml:2", "t.yaml:5", "t.yaml:8"]


@pytest.mark.parametrize(("name", "value"), [("dataset", "toy"), ("seed", 4), ("depth", 3)])
def test_a_setting_that_rows_would_overwrite_is_refused(name: str, value: object) -> None:
    assert complaint(GOOD, **{name: value}).startswith(f"--set {name}: ")


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(RazError, match=r"no profile 'papper', expected one of toy, paper\n  try: did you mean paper"):
        table_of(GOOD).profile("papper")


# ------------------------------------------------------------------------------------ the shipped ones

TABLE_4 = """\
density   | 67.5 | 109.5 | 9.6  | 15.4 | 126 | 208
loc_1     | 75.2 | 133.0 | 13.5 | 25.4 | 135 | 246
loc_2     | 71.6 | 120.1 | 9.9  | 15.6 | 118 | 198
loc_3     | 70.5 | 120.8 | 9.4  | 13.3 | 120 | 200
loc_4     | 71.4 | 124.2 | 9.6  | 14.6 | 120 | 201
average_2 | 66.5 | 111.5 | 8.6  | 14.2 | 117 | 195
average_3 | 65.8 | 111.5 | 8.5  | 13.5 | 118 | 196
average_4 | 66.4 | 113.4 | 8.6  | 13.7 | 119 | 197
fusion_1  | 66.1 | 108.4 | 9.5  | 15.2 | 123 | 203
fusion_2  | 65.1 | 106.7 | 8.4  | 14.1 | 116 | 195
fusion_3  | 64.7 | 106.6 | 8.5  | 13.5 | 118 | 195
fusion_4  | 65.3 | 108.8 | 8.5  | 13.4 | 119 | 198"""


def shipped_table(name: str) -> AblationTable:
    return load_table(shipped("ablations")[name], f"ablations/{name}.yaml")


def test_recurrence_prints_table_4_of_the_paper() -> None:
    table = shipped_table("recurrence")
    datasets = ("shanghaitech_a", "shanghaitech_b", "ucf_qnrf")
    rows = {}
    for row in table.rows:
        if row.name == "average_1":  # completes the series, and the paper does not print it
            assert not row.paper
            continue
        rows[row.name] = [row.paper[dataset][metric] for dataset in datasets for metric in table.metrics]
    truth = {
        cells[0].strip(): [float(cell) for cell in cells[1:]]
        for cells in (line.split("|") for line in TABLE_4.splitlines())
    }
    assert rows == truth
    assert list(rows) == list(truth)


TABLE_2 = """\
Zhang_2015   | 181.8 277.7 | 32.0 49.8 | 9.8 14.1 14.3 22.2 3.7 12.9 | - -
MCNN         | 110.2 173.2 | 26.4 41.3 | 3.4 20.6 12.9 13.0 8.1 11.6 | 277 426
Cascaded-MTL | 101.3 152.4 | 20.0 31.1 | - - - - - -                 | 252 514
Huang_2018   | - -         | 20.2 35.6 | 4.1 21.7 11.9 11.0 3.5 10.5 | - -
Switch-CNN   | 90.4 135.0  | 21.6 33.4 | 4.4 15.7 10.0 11.0 5.9 9.4   | 228 445
CP-CNN       | 73.6 106.4  | 20.1 30.1 | 2.9 14.7 10.5 10.4 5.8 8.9   | - -
CSRNet       | 68.2 115.0  | 10.6 16.0 | 2.9 11.5 8.6 16.6 3.4 8.6    | - -
SANet        | 67.0 104.5  | 8.4 13.6  | 2.6 13.2 9.0 13.3 3.0 8.2    | - -
Idrees_2018  | - -         | - -       | - - - - - -                  | 132 191
RAZ_density       | 67.5 109.5 | 9.6 15.4  | 2.5 11.3 9.5 13.4 4.7 8.3  | 126 208
RAZ_localization  | 75.2 133.0 | 13.5 25.4 | 2.0 13.9 9.1 44.5 3.2 14.6 | 135 246
RAZ_localization+ | 71.6 120.1 | 9.9 15.6  | 2.0 13.9 9.1 32.3 3.2 12.5 | 118 198
RAZ_average       | 66.5 111.5 | 8.6 14.2  | 2.0 12.3 8.8 28.2 3.2 10.9 | 117 195
RAZ_fusion        | 65.1 106.7 | 8.4 14.1  | 2.0 11.8 9.0 13.6 3.3 8.0  | 116 195"""


def test_counting_prints_table_2_and_marks_what_cannot_be() -> None:
    table = shipped_table("counting")
    rows = {row.name: row for row in table.rows}
    assert table.row("CSRNet_here").set["counting.kernel"] == "csrnet"
    for line in TABLE_2.splitlines():
        name, *cells = (part.strip() for part in line.split("|"))
        datasets = ("shanghaitech_a", "shanghaitech_b", "worldexpo", "ucf_qnrf")
        for dataset, numbers in zip(datasets, cells, strict=True):
            printed = rows[name].paper.get(dataset, {})
            wanted = zip(table.metrics_of(dataset), numbers.split(), strict=True)
            assert printed == {metric: float(number) for metric, number in wanted if number != "-"}, (name, dataset)
        assert rows[name].quoted == (not name.startswith("RAZ"))
    # WorldExpo's last column is the mean of its scenes, wherever all are printed, but for the marked ones
    odd = []
    for row in table.rows:
        numbers = row.paper.get("worldexpo", {})
        *scenes, mean = (numbers[m] for m in table.metrics_of("worldexpo")) if len(numbers) == 6 else (0.0, 0.0)
        if abs(sum(scenes) / max(len(scenes), 1) - mean) > 0.11:
            odd.append(row.name)
    assert odd == ["RAZ_localization+"]
    assert {(m.row, m.metric) for m in table.misprints} == {
        ("RAZ_localization+", "test.mae"), ("RAZ_average", "test.mae@scene4"),
    }  # fmt: skip


def test_a_quoted_row_is_never_run() -> None:
    text = GOOD + "  other: {source: 'a paper', paper: {ucf_qnrf: [9, 9]}}\n"
    table = table_of(text)
    assert [row.name for row in table.run_rows] == ["one", "two", "bare"]
    assert not any(trial.row == "other" for trial in table.trials(table.profile()))
    assert "rows.other is quoted (source) and has no numbers" in complaint(GOOD + "  other: {source: a}\n")
    both = GOOD + "  other: {source: a, set: {}, paper: {ucf_qnrf: [9, 9]}}\n"
    assert "rows.other is quoted (source) and sets something" in complaint(both)


def test_two_rows_of_one_meaning_are_refused() -> None:
    text = GOOD.replace("bare: {}", "bare: {}\n  again: {set: {depth: 1}}")
    message = complaint(text)
    assert message.startswith("t.yaml:11: rows one and again mean the same trial in profile toy")
    assert message.count("again") == 1  # once, though it holds in both profiles


def test_claims_are_sums_of_cells() -> None:
    claim = "claims:\n  - {say: deeper is better, rows: {two: 1, one: -1}, expect: less}\n"
    table = table_of(GOOD + claim)
    assert list(table.claims[0].sums()) == [
        (("test.mae",), {("two", "test.mae"): 1.0, ("one", "test.mae"): -1.0}),
        (("test.rmse",), {("two", "test.rmse"): 1.0, ("one", "test.rmse"): -1.0}),
    ]
    across = table_of(GOOD + claim.replace("expect", "of: {test.mae: 1, test.rmse: -1}, expect")).claims[0]
    assert list(across.sums()) == [
        (
            ("test.mae", "test.rmse"),
            {
                ("two", "test.mae"): 1.0,
                ("two", "test.rmse"): -1.0,
                ("one", "test.mae"): -1.0,
                ("one", "test.rmse"): 1.0,
            },
        )
    ]
    assert "no row 'won'" in complaint(GOOD + claim.replace("one: -1", "won: -1"))
    assert "expect is 'lower', expected less or more" in complaint(GOOD + claim.replace("less", "lower"))
    assert "base_row is 'tow', expected a row that is run\n  try: did you mean two" in complaint(
        GOOD + "base_row: tow\n"
    )


def test_a_data_set_may_have_columns_of_its_own() -> None:
    text = GOOD + "dataset_metrics: {ucf_qnrf: [test.mae]}\n"
    assert "rows.one.paper has 2 numbers for ucf_qnrf, expected 1: test.mae" in complaint(text)
    fits = text.replace("[135, 246]", "[135]").replace("[118, null]", "[118]")
    assert table_of(fits).metrics_of("ucf_qnrf") == ("test.mae",)
    assert table_of(fits).metrics_of("toy") == ("test.mae", "test.rmse")


def test_the_name_of_a_recurrence_row_is_its_rule_and_depth() -> None:
    table = shipped_table("recurrence")
    rules = {"density": "density", "loc": "localization", "average": "average", "fusion": "grid"}
    for row in table.rows:
        stem, _, depth = row.name.partition("_")
        assert dict(row.set) == {"fusion.rule": rules[stem], "depth": int(depth or 1)}


def test_depths_one_and_two_agree_with_table_2() -> None:
    """(19): the suffix counts passes, since these rows are printed twice in the paper."""
    table = shipped_table("recurrence")
    table_2 = {
        "density": (67.5, 109.5, 126, 208), "loc_1": (75.2, 133.0, 135, 246), "loc_2": (71.6, 120.1, 118, 198),
        "average_2": (66.5, 111.5, 117, 195), "fusion_2": (65.1, 106.7, 116, 195),
    }  # fmt: skip
    for name, numbers in table_2.items():
        paper = table.row(name).paper
        assert (*paper["shanghaitech_a"].values(), *paper["ucf_qnrf"].values()) == numbers


def test_localization_marks_the_one_impossible_number() -> None:
    """AP and AR cannot rise with a stricter threshold; the only printed one that does is marked."""
    table = shipped_table("localization")
    assert len(table.metrics) == 18
    impossible = []
    for row in table.rows:
        for dataset, numbers in row.paper.items():
            assert len(numbers) == 18
            for sigma in (40, 20, 5):
                impossible += [
                    (row.name, dataset, f"test.{kind}50@{sigma}")
                    for kind in ("ap", "ar")
                    if numbers[f"test.{kind}50@{sigma}"] < numbers[f"test.{kind}75@{sigma}"]
                ]
    assert impossible == [(m.row, m.dataset, m.metric) for m in table.misprints]
    assert impossible == [("main+raz", "shanghaitech_a", "test.ar50@5")]


def test_localization_runs_nothing_that_recurrence_does_not() -> None:
    recurrence, localization = shipped_table("recurrence"), shipped_table("localization")
    for profile in ("toy", "small"):
        there = [trial.config for trial in recurrence.trials(recurrence.profile(profile))]
        assert all(trial.config in there for trial in localization.trials(localization.profile(profile)))


SET_ON_SMALL = {
    "components": {"fusion.theta_f": "cell"},
    "unfreeze": {
        "backbone.neck": 0,
        **{
            f"{part}.train.{name}": value
            for part in ("counting", "localization", "raz")
            for name, value in (("grey", 0), ("backbone_lr", 0), ("scales", []))
        },
    },
}


@pytest.mark.parametrize("name", sorted(shipped("ablations")))
def test_shipped_tables_open_with_question_cost_and_expectation_and_run_anywhere(name: str) -> None:
    table = shipped_table(name)
    assert table.table == name
    assert "?" in table.comment.splitlines()[0]
    assert "Cost:" in table.comment
    assert "Expect" in table.comment
    assert bool(table.paper) == any(row.paper for row in table.rows)
    assert table.profile().name == "toy"
    assert table.profile().datasets == ("toy",)
    for profile, preset in (("toy", "tiny"), ("small", "small"), ("paper", "paper")):
        config = PRESETS[preset]
        if name in ("beta", "kernel", "resolution"):
            assert table.metrics == ("test.mae", "test.rmse")
            assert all(trial.config.fusion.rule == "density" for trial in table.trials(table.profile(profile)))
            config = configure(config, {"localization.train.epochs": 1})  # of which no cell tells
        if profile == "small":  # what the rows compare with is not in this preset
            config = configure(config, SET_ON_SMALL.get(name, {}))
        assert table.profile(profile).base == config
