"""Faults that the test Hub commits on request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["status", "drop", "corrupt", "slow", "lose_reply"]


@dataclass
class Fault:
    """What goes wrong with the next requests that fit.

    Attributes:
        where: Pattern that `"METHOD /path"` must contain.
        kind: `status`: an error reply; `drop`: the connection ends in the middle of the body;
            `corrupt`: a byte of the body (received, or sent if none is received) is changed;
            `slow`: the reply waits; `lose_reply`: the request is carried out, and the connection
            ends before the reply.
        status: Status of the error reply.
        headers: Headers of the error reply.
        seconds: How long a slow reply waits.
        times: How many requests it meets.
    """

    where: str
    kind: Kind = "status"
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.5
    times: int = 1

    def meets(self, request: str) -> bool:
        """Whether a request is to suffer; counts it."""
        if self.times <= 0 or not re.search(self.where, request):
            return False
        self.times -= 1
        return True
