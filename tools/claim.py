"""``negindex claim``: somebody's reasons for rows to be in the set, from the notice to the end."""

from __future__ import annotations

import click

from negindex.tools import claim_steps
from negindex.tools.claim_open import attach, open_claim
from negindex.tools.claim_read import due, list_claims, regimes, show

_COMMANDS = [  # in the order in which they are used
    *(regimes, open_claim, show, list_claims, due),
    *(claim_steps.amend, attach, claim_steps.accept),
    *(claim_steps.dispute, claim_steps.stay, claim_steps.uphold, claim_steps.withdraw),
    *(claim_steps.hold, claim_steps.release, claim_steps.erase),
]


class _InOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder)
def claim() -> None:
    """Take in claims, decide on them, and see which are due.

    A notice puts rows in force, and a counter-notice withdraws the claim. Each step is one version and one record of
    the log. What a claim tells of persons goes in by --fields, lies apart, and is shown by `claim show --claimant`
    alone. Which law binds is for counsel.
    """


for _command in _COMMANDS:
    claim.add_command(_command)
