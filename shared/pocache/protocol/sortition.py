"""Who can be drawn for a job, and with which weight (docs/protocol.md 6.6).

Owns two rules about a verifier's owner, the participant that runs it, as the operator attested: nobody whose owner has a
part in the job is drawn, and what one owner has staked counts no more than a stated share of all, however many keys
it is divided over. Who is not attested is its own owner. The draw itself is ``challenge.draw_order``.

Not covered: an owner of whom the operator does not know that two keys are its.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from pocache.protocol.errors import ChallengeError
from pocache.protocol.ids import ParticipantId


def compute_weights(
    stakes: Iterable[tuple[ParticipantId, int]],
    *,
    owners: Mapping[ParticipantId, ParticipantId],
    parties: Collection[ParticipantId],
    excluded: Collection[ParticipantId],
    share_max: tuple[int, int],
) -> tuple[tuple[ParticipantId, int], ...]:
    """Return who can be drawn and with which weight, ascending by id, as `draw_order` takes it.

    Out are those whose owner is one of the parties' owners, and the excluded. Of what is left, T in all, an owner with
    S > L = max(1, ⌊T·numerator/denominator⌋) counts L: each of its stakes s becomes max(1, ⌊s·L/S⌋).
    Errors: ChallengeError for a share that is none.
    """
    numerator, denominator = share_max
    if not 0 < numerator <= denominator:
        message = f"0 < share ≤ 1 is violated: {numerator}/{denominator}"
        raise ChallengeError(message)

    def get_owner(participant: ParticipantId) -> ParticipantId:
        return owners.get(participant, participant)

    related = {get_owner(party) for party in parties}
    able = sorted(
        (participant, stake)
        for participant, stake in stakes
        if get_owner(participant) not in related and participant not in excluded
    )
    limit = max(1, sum(stake for _, stake in able) * numerator // denominator)
    sums: dict[ParticipantId, int] = {}
    for participant, stake in able:
        owner = get_owner(participant)
        sums[owner] = sums.get(owner, 0) + stake

    def weigh(participant: ParticipantId, stake: int) -> int:
        total = sums[get_owner(participant)]
        return stake if total <= limit else max(1, stake * limit // total)

    return tuple((participant, weigh(participant, stake)) for participant, stake in able)
