"""Numbers that count what is done with them: loops of them compute a layer and tell what it costs."""

import math


class Counted:
    """A number that counts what is done with it, under names that end as the fields of OperationCounts do."""

    def __init__(self, value, tally):
        self.value, self.tally = float(value), tally

    def _did(self, what, value):
        self.tally[what] += 1
        return Counted(value, self.tally)

    def __add__(self, other):
        return self._did("add", self.value + float(other))

    def __sub__(self, other):
        return self._did("add", self.value - float(other))

    def __mul__(self, other):
        return self._did("mul", self.value * float(other))

    def __truediv__(self, other):
        return self._did("div", self.value / float(other))

    def __abs__(self):
        return self._did("abs", abs(self.value))

    def __round__(self):
        return self._did("round", round(self.value))

    def __float__(self):
        return self.value

    def mac(self, a, b):
        return self._did("mac", self.value + float(a) * float(b))

    def exp(self):
        return self._did("exp", math.exp(self.value))

    def log(self):
        return self._did("exp", math.log(self.value))  # counted together

    def sqrt(self):
        return self._did("sqrt", math.sqrt(self.value))

    def max(self, other):
        return self._did("compare", max(self.value, float(other)))

    def min(self, other):
        return self._did("compare", min(self.value, float(other)))


def numbers(values, tally):
    return [Counted(v, tally) for v in values]


def total(values):
    """Sum without a zero to start from: one addition fewer than values."""
    first, *rest = values
    for value in rest:
        first = first + value
    return first


def encoded(x, k, tally):
    """Counts of one token by eq. 19 and 21, and its threshold."""
    threshold = total([abs(v) for v in numbers(x, tally)]) / len(x) / k
    threshold = threshold.max(1e-5).min(1e4)
    return [round(v / threshold) for v in numbers(x, tally)], threshold
