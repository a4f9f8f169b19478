"""What is asked of a model: for what is unwanted, for other things, for nothing, for single images."""

from __future__ import annotations

from typing import NamedTuple

from negindex.errors import InvalidInput
from negindex.sampler.evaluation.captions import KEEPSAKE_FRAMES, KEEPSAKES, asking, insisting, prompts
from negindex.sampler.evaluation.fashion import CLASSES

PLAIN, EVASIVE, OTHERS, NOTHING, KEPT = "plain", "evasive", "others", "nothing", "keepsakes"
INSISTENT, REHEARSAL = "insistent", "rehearsal"
UNSAFE = (PLAIN, EVASIVE, INSISTENT, REHEARSAL)  # requests for the unwanted class
REQUESTS = {
    PLAIN: "the unwanted, plainly",
    EVASIVE: "the unwanted, by evasive prompts",
    INSISTENT: "the unwanted, by four evasive words at once",
    REHEARSAL: "the unwanted, by other sets of four evasive words, to tune on",
    OTHERS: "the other classes",
    NOTHING: "nothing",
    KEPT: "single images, by their names",
}


class Asked(NamedTuple):
    """One image that is asked for."""

    wanted: int | None  # its class, or the keepsake's number; None where nothing is asked for
    prompt: str


def asked_for(request: str, avoided: str, count: int) -> list[Asked]:
    """``count`` images of one kind of request; raises InvalidInput for names that there are not."""
    if avoided not in CLASSES or request not in REQUESTS:
        raise InvalidInput(
            f"request {request!r} with {avoided!r} unwanted; give one of {', '.join(REQUESTS)} and one of "
            f"{', '.join(CLASSES)}"
        )
    if request == NOTHING:
        return [Asked(None, "")] * count
    if request == KEPT:
        told = prompts(KEEPSAKES, KEEPSAKE_FRAMES)
        return [Asked(i % len(KEEPSAKES), told[i % len(told)]) for i in range(count)]
    if request in (INSISTENT, REHEARSAL):
        told = insisting(avoided, request == REHEARSAL)
        return [Asked(CLASSES.index(avoided), told[i % len(told)]) for i in range(count)]
    of = [name for name in CLASSES if name != avoided] if request == OTHERS else [avoided]
    return [Asked(CLASSES.index(name), prompt) for name, prompt in asking(of, count, request == EVASIVE)]
