"""In which order ready stages start, and the schedule that follows, against closed forms and brute force."""

from __future__ import annotations

import itertools
import json
import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from raz.cli.main import app
from raz.pipeline.graph import node_keys
from raz.planning.schedule import (
    ReadyStage,
    by_priority,
    critical_path_lengths,
    max_live_trials,
    order_by_new_work,
    remaining_seconds,
)
from raz.planning.simulate import StageVisit, simulate, simulate_without_sharing
from raz.planning.work_order import nominal_work, trial_order
from raz.spec.space_yaml import parse_space
from raz.utils.yamlfile import parse


def test_the_longest_remaining_path_starts_first() -> None:
    ready = [ReadyStage("a", 5, 9, 0), ReadyStage("b", 20, 1, 1), ReadyStage("c", 5, 1, 2), ReadyStage("d", 5, 9, 3)]
    assert [stage.key for stage in by_priority(ready)] == ["b", "a", "d", "c"]
    assert by_priority(ready) == by_priority(reversed(ready))


def test_what_a_trial_has_before_it_leaves_out_what_is_made() -> None:
    assert remaining_seconds([("a", 3.0), ("b", 5.0), ("c", 2.0)], {"b"}.__contains__) == 5.0
    assert remaining_seconds([], {"b"}.__contains__) == 0.0


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32))
def test_the_longest_path_is_the_longest_of_all_paths(n: int, seed: int) -> None:
    chance = random.Random(seed)
    seconds = {str(i): float(chance.randint(0, 9)) for i in range(n)}
    needs = {str(i): [str(j) for j in range(i) if chance.random() < 0.4] for i in range(n)}

    def walk(key: str) -> float:  # every path, one by one
        return seconds[key] + max([walk(other) for other in needs if key in needs[other]], default=0)

    assert critical_path_lengths(seconds, needs) == {key: walk(key) for key in seconds}


def test_a_circle_of_needs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"circle: \['a', 'b'\]"):
        critical_path_lengths({"a": 1, "b": 1, "c": 1}, {"a": ["b"], "b": ["a"]})


LEFT_OUT = """\
study: left-out
base: {preset: tiny, dataset: toy, set: {fusion.rule: grid}}
design: {sampler: loo, seeds: [0, 1, 2]}
parameters:
  counting.kernel: {choice: [raz, csrnet]}
  localization.gamma: {choice: [100, 10, 1000]}
  attention.sigma_z: {choice: [3, 2, 5]}
  zooming.k_z: {choice: [10, 4]}
  depth: {choice: [3, 2, 1]}
  fusion.rule: {choice: [grid, average, density, localization]}
"""

# ------------------------------------------------------------------ schedules


def tree(seed: int, trials: int = 6, depth: int = 4) -> list[list[StageVisit]]:
    """Trials as paths from a root to a leaf; whole seconds, each stage needs the one before it."""
    chance = random.Random(seed)
    seconds: dict[str, float] = {}
    out = []
    for _ in range(trials):
        way: list[StageVisit] = []
        key = "root"
        for _ in range(chance.randint(1, depth)):
            key = f"{key}.{chance.randint(0, 2)}"
            cost = seconds.setdefault(key, float(chance.randint(1, 9)))
            way.append(StageVisit(key, cost, needs=(way[-1].key,) if way else ()))
        out.append(way)
    return out


def distinct(trials: list[list[StageVisit]]) -> dict[str, StageVisit]:
    return {step.key: step for trial in trials for step in trial}


def shortest(trials: list[list[StageVisit]], devices: int) -> float:
    """The best makespan of all, by trying every set of ready stages whenever a device becomes free."""
    steps = distinct(trials)

    @cache
    def best(done: frozenset[str], running: frozenset[tuple[str, float]]) -> float:
        busy = {key for key, _ in running}
        ready = [k for k, s in steps.items() if k not in done and k not in busy and set(s.needs) <= done]
        options = []
        for count in range(min(devices - len(running), len(ready)) + 1):
            for chosen in itertools.combinations(ready, count):
                now = running | {(key, steps[key].seconds) for key in chosen}
                if not now:
                    continue
                step = min(left for _, left in now)
                over = frozenset(key for key, left in now if left == step)
                rest = frozenset((key, left - step) for key, left in now if left > step)
                options.append(step + best(done | over, rest))
        return min(options, default=0.0)

    return best(frozenset(), frozenset())


def ticked(trials: list[list[StageVisit]], devices: int) -> float:
    """The makespan of the same rule, second by second, for whole seconds."""
    steps = distinct(trials)
    left = {key: step.seconds for key, step in steps.items()}
    running: set[str] = set()
    asked: dict[str, int] = {}
    clock = 0.0
    while any(left.values()):
        waits: dict[str, list[float]] = {}
        for way in trials:
            rest = [step for step in way if left[step.key]]
            if rest and way.index(rest[0]) == len(way) - len(rest):
                waits.setdefault(rest[0].key, []).append(sum(step.seconds for step in rest))
                asked.setdefault(rest[0].key, len(asked))
        queue = [ReadyStage(k, max(paths), len(paths), asked[k]) for k, paths in waits.items() if k not in running]
        running |= {stage.key for stage in by_priority(queue)[: devices - len(running)]}
        for key in running:
            left[key] -= 1
        running = {key for key in running if left[key]}
        clock += 1
    return clock


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8))
def test_a_schedule_keeps_the_rules(seed: int, devices: int) -> None:
    trials = tree(seed, trials=12)
    steps, found = distinct(trials), simulate(trials, devices)
    assert found.starts.keys() == steps.keys()  # each stage once, none forgotten
    for key, (start, end) in found.starts.items():
        assert end - start == steps[key].seconds
        assert all(found.starts[other][1] <= start for other in steps[key].needs)
        assert sum(a <= start < b for a, b in found.starts.values()) <= devices
    assert found.makespan == max(end for _, end in found.starts.values())
    assert found.busy == sum(step.seconds for step in steps.values())
    # Graham's bounds for any schedule that leaves no device idle beside a ready stage
    assert found.floor <= found.makespan
    assert found.makespan <= found.busy / devices + (1 - 1 / devices) * found.critical_path + 1e-9
    assert 0 < found.utilisation <= 1


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
@example(2_298_455_932, 3)  # stages that end at the same moment free trials whose next stages rank alike
def test_event_by_event_is_second_by_second(seed: int, devices: int) -> None:
    trials = tree(seed)
    assert simulate(trials, devices).makespan == ticked(trials, devices)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_never_twice_as_long_as_the_best_of_all(seed: int, devices: int) -> None:
    trials = tree(seed, trials=3, depth=3)
    best = shortest(trials, devices)
    assert best <= simulate(trials, devices).makespan <= (2 - 1 / devices) * best + 1e-9


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_closed_forms(seed: int) -> None:
    trials = tree(seed)
    total = sum(step.seconds for step in distinct(trials).values())
    assert simulate(trials, 1).makespan == total  # one device: the sum
    longest = max(sum(step.seconds for step in way) for way in trials)
    unlimited = simulate(trials, len(distinct(trials)))
    assert unlimited.makespan == unlimited.critical_path == longest  # enough devices: the longest way
    alone = sum(step.seconds for way in trials for step in way)
    assert simulate_without_sharing(trials, 1).makespan == alone
    assert simulate_without_sharing(trials, len(trials)).makespan == longest
    assert simulate(trials, 99, alive=1).makespan == total  # one trial at a time


# ------------------------------------------------------------------ in which order trials begin


def weighed(trials: list[list[StageVisit]]) -> list[dict[str, float]]:
    return [{step.key: step.seconds for step in way} for way in trials]


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sets(st.sampled_from(["root.0", "root.1", "root.0.1"])))
def test_next_begins_what_adds_most_to_those_before(seed: int, made: set[str]) -> None:
    ways = weighed(tree(seed, trials=15))
    left, begun, wanted = list(range(len(ways))), set(made), []
    while left:  # each of them weighed each time
        best = max(left, key=lambda i: (sum(s for key, s in ways[i].items() if key not in begun), -i))
        left.remove(best)
        wanted.append(best)
        begun |= set(ways[best])
    assert order_by_new_work(ways, made) == wanted


def test_a_thousand_trials_are_weighed_a_few_times_each() -> None:
    count = 0

    class Way(dict[str, float]):
        def items(self):  # type: ignore[no-untyped-def]
            nonlocal count
            count += 1
            return super().items()

    chance = random.Random(0)
    places = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
    chance.shuffle(places)
    ways = [Way({f"{a}": 9.0, f"{a} {b}": 5.0, f"{a} {b} {c}": 1.0}) for a, b, c in places]
    assert sorted(order_by_new_work(ways)) == list(range(1000))
    assert count < 4000


def test_spread_trials_end_near_the_best_of_all_orders() -> None:
    """Every order of six trials, three alive on two devices: no order is below the floor; begun as they are listed,
    trials that share come together and the devices idle."""
    ratios, listed = [], []
    for seed in range(8):
        trials = []
        for root in range(2):
            for leaf in range(3):
                way: list[StageVisit] = []
                names = (f"{root}", f"{root}.{leaf // 2}", f"{root}.{leaf}")
                for stage, seconds, name in zip(("counting", "points", "zoom"), (6, 3, 2), names, strict=True):
                    cost = float(seconds + random.Random(f"{seed} {stage} {name}").randint(0, 3))
                    way.append(StageVisit(f"{stage} {name}", cost, needs=(way[-1].key,) if way else ()))
                trials.append(way)
        best = min(simulate(list(some), 2, 3).makespan for some in itertools.permutations(trials))
        turn = [trials[i] for i in order_by_new_work(weighed(trials))]
        found = simulate(turn, 2, 3)
        assert found.starts.keys() == distinct(trials).keys()
        assert found.floor <= best <= found.makespan
        ratios.append(found.makespan / best)
        listed.append(simulate(trials, 2, 3).makespan / best)
    assert max(ratios) < 1.15
    assert sum(ratios) / len(ratios) < 1.03 < sum(listed) / len(listed)


def test_leaving_one_out_with_seeds_keeps_the_devices_busy() -> None:
    """Three seeds, all of one before the next: as listed four devices wait for the one network that all share."""
    space = parse_space(parse(LEFT_OUT, "loo.yaml"))
    configs = [space.config(point) for point in space.points]
    ways = [nominal_work(config, ("val",)) for config in configs]
    steps = []
    for config, way in zip(configs, ways, strict=True):
        keys = node_keys(config, ("val",), lambda split: split, lambda backbone: backbone.weights)
        steps.append([StageVisit(key.key, way[key.key], needs=tuple(key.needs.values())) for key in keys.values()])
    turn = trial_order(configs, ("val",))
    assert sorted(turn) == list(range(len(configs)))
    first = [ways[i].keys() for i in turn[:6]]  # three seeds, two kernels: nothing in common
    assert all(not one & other for one, other in itertools.combinations(first, 2))
    for devices, most in ((2, 1.02), (3, 1.05), (4, 1.1)):
        found = simulate([steps[i] for i in turn], devices, max_live_trials(devices, eager=True))
        assert found.starts.keys() == {key for way in ways for key in way}
        assert found.makespan <= most * found.floor
    listed = simulate(steps, 4, max_live_trials(4, eager=True))
    assert listed.makespan > 1.15 * listed.floor
    # what is done counts as begun: the whole method of the first seed shares with most of its own
    assert configs[0].seed == 0
    assert [configs[i].seed for i in trial_order(configs, ("val",), done=configs[:1])[:3]].count(0) == 1


def test_what_needs_no_device_waits_for_none() -> None:
    trials = [
        [StageVisit("train", 5)],
        [StageVisit("score", 2, device=False)],
        [StageVisit("held", 0), StageVisit("other", 3)],
    ]
    found = simulate(trials, 1)
    assert found.starts == {"train": (0, 5), "score": (0, 2), "other": (5, 8)}
    assert (found.busy, found.total, found.makespan, found.utilisation) == (8, 10, 8, 1.0)


def test_nothing_to_do_takes_no_time() -> None:
    assert simulate([[StageVisit("a", 0)]], 2).makespan == 0.0
    with pytest.raises(ValueError, match="0 devices"):
        simulate([], 0)


def test_the_longest_way_first_is_better_than_the_first_asked_first() -> None:
    short = [[StageVisit(f"s{i}", 1)] for i in range(4)]
    long = [[StageVisit("a", 2), StageVisit("b", 2, needs=("a",))]]
    assert simulate(short + long, 2).makespan == 4.0  # the floor; asked-first would take 2 + 4


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    words = ["simulate", "recurrence", "--devices", "3", "--json", "--store", str(tmp_path)]
    found = json.loads(CliRunner().invoke(app, words).stdout)
    assert found["devices"] == 3
    assert found["floor_seconds"] <= found["makespan_seconds"] <= found["without_sharing"]["makespan_seconds"]
    shown = CliRunner().invoke(app, words[:4] + words[5:]).stdout
    assert f"{found['trials']} trials, {found['stages']} distinct stages, 3 simulated devices" in shown
    assert not list(tmp_path.iterdir())  # nothing is run, nothing is written
