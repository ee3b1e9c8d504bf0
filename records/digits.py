"""Numbers as they were written: how many digits a claim has, and whether it agrees with a value that has more."""

SCORE_UNIT = 1e-2  # the most that a claimed score may be off because it has few digits


class Decimal(float):
    """A JSON number that remembers how it was written, and so how many digits it has."""
    text = ""

    @property
    def unit(self):
        """One unit of the last digit that was written."""
        mantissa, _, exponent = self.text.lower().partition("e")
        return 10.0 ** min(300, int(exponent[:6] or 0) - len(mantissa.partition(".")[2]))


def agrees(claim, value, most=SCORE_UNIT):
    """Whether a claim is the value with fewer digits: rounded, rounded up or cut off, since people do all three and no
    rule names one. So it is off by less than one unit of its last digit, and by less than `most`. False without one."""
    if claim is None or value is None:
        return False
    return abs(claim - value) < max(slack_of(claim, most) * (1 - 1e-9), 1e-12)


def slack_of(claim, most=SCORE_UNIT):
    """By how much a claim may be off on account of its digits."""
    return min(most, claim.unit if isinstance(claim, Decimal) else 1.0)
