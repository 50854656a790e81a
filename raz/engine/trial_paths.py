"""Which living trials have which stages on their path, so that a shared stage is known as such."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

WAITER_TIMEOUT = 30.0  # seconds without a call after which a trial counts as absent
FORGOTTEN = 10 * WAITER_TIMEOUT  # seconds without a call after which its path is forgotten


class TrialPaths:
    """The paths of trials that have joined. Times are given by the caller and never decrease."""

    def __init__(self) -> None:
        self._keys: dict[str, frozenset[str]] = {}  # trial -> keys on its path
        self._living: OrderedDict[str, float] = OrderedDict()  # trial -> its last call, the oldest first
        self._silent: OrderedDict[str, float] = OrderedDict()  # likewise of those that have become absent
        self._trials: dict[str, set[str]] = {}  # key -> living trials that have it on their path

    def join(self, trial: str, keys: Iterable[str], now: float) -> list[str]:
        """Records a trial's path. Returns the keys that other living trials have on theirs."""
        self.leave(trial)
        self._keys[trial] = frozenset(keys)
        self._revive(trial, now)
        self.expire(now)
        return [key for key in self._keys[trial] if self.shared(key, trial)]

    def leave(self, trial: str) -> None:
        """The trial has ended."""
        if self._living.pop(trial, None) is not None:
            self._drop(trial)
        self._silent.pop(trial, None)
        self._keys.pop(trial, None)

    def called(self, trial: str, now: float) -> None:
        """A trial has called, so it lives."""
        if trial in self._living:
            self._living[trial] = now
            self._living.move_to_end(trial)
        elif trial in self._silent:
            del self._silent[trial]
            self._revive(trial, now)
        self.expire(now)

    def shared(self, key: str, trial: str) -> bool:
        """Whether another living trial has the key on its path."""
        trials = self._trials.get(key, ())
        return len(trials) > (trial in trials)

    def expire(self, now: float) -> None:
        """Trials without a call for WAITER_TIMEOUT are absent."""
        while self._living:
            trial, last = next(iter(self._living.items()))
            if now - last < WAITER_TIMEOUT:
                return
            del self._living[trial]
            self._drop(trial)
            self._silent[trial] = last

    def forget(self, now: float) -> None:
        """Forgets the paths of trials that have been absent for long."""
        self.expire(now)
        while self._silent:
            trial, last = next(iter(self._silent.items()))
            if now - last < FORGOTTEN:
                return
            del self._silent[trial], self._keys[trial]

    def _revive(self, trial: str, now: float) -> None:
        self._living[trial] = now
        for key in self._keys[trial]:
            self._trials.setdefault(key, set()).add(trial)

    def _drop(self, trial: str) -> None:
        for key in self._keys[trial]:
            trials = self._trials[key]
            trials.discard(trial)
            if not trials:
                del self._trials[key]
