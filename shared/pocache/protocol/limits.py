"""Every bound of the protocol and the wire, with the relations between them checked at the end.

Counts are numbers of things, sizes are bytes, times carry their unit last.
"""

from __future__ import annotations

from typing import Final

PAYLOAD_BYTES_MAX: Final = 1_000_000
"""Largest message body; below the 1 MiB default of nats-server with headers to spare."""

CARRIED_BYTES_MAX: Final = 998_000
"""Largest envelope of somebody else that a message carries whole, for whoever judges the record later."""

CODEC_DEPTH_MAX: Final = 8
"""Deepest nesting of maps and arrays that the codec reads."""

CODEC_ITEMS_MAX: Final = 65_536
"""Most elements in one array or map on the wire; longer lists travel as packed bytes."""

TEXT_BYTES_MAX: Final = 4_096
"""Longest text field: reasons, stack names, error messages."""

PROMPT_TOKENS_MAX: Final = 65_536
OUTPUT_TOKENS_MAX: Final = 32_768
LEAF_COUNT_MAX: Final = PROMPT_TOKENS_MAX + OUTPUT_TOKENS_MAX
"""N = |prompt| + |output| − 1 stays below this."""

TOKEN_BYTES: Final = 4
"""A token id on the wire: unsigned 32-bit, little-endian."""
LOGPROB_BYTES: Final = 4
"""A token's log-probability on the wire: float32, little-endian."""

LAYER_COUNT_MAX: Final = 512
ROW_WIDTH_MAX: Final = 65_536
"""Floats in one row."""

LEAF_BYTES_MAX: Final = 800_000
"""A leaf travels whole in one message; a row schema with larger leaves is refused."""

SAMPLE_COUNT_MAX: Final = 256

OPEN_VECTORS_MAX: Final = 4_096
"""Vectors in one question of the open mode."""

STAGE_COUNT_MAX: Final = 16
"""K of ``unified-pool`` at most."""

SEAT_COUNT_MAX: Final = 36
"""Verifiers of one job at most, by the numbers of their seats, whatever the rules."""

COMPARISONS_MAX: Final = 1_024
"""Comparisons of one dispute; two committees of the largest size make fewer."""
ATTEMPT_COUNT_MAX: Final = 16
OPENING_PARTS_MAX: Final = 256
MULTIPROOF_DIGESTS_MAX: Final = 8_192

MEMBERS_MAX: Final = 4_096
"""Verifiers in one stake snapshot."""

MODELS_PER_MEMBER_MAX: Final = 64

OWNERS_MAX: Final = 2_048
"""Participants of which a snapshot says whose they are."""

BEACON_MEMBERS_MAX: Final = 64
"""Members of a threshold beacon: each hears every other's part of every round."""

ESCROW_ENTRY_BYTES: Final = 3_072
"""What an admitted job takes of RECORD until its deposit is answered, besides its submission."""

ESCROW_BYTES_MAX: Final = 8_388_608
"""Jobs of one account that wait for their deposit: more than two thousand small ones."""

NEW_ACCOUNT_ESCROW_BYTES_MAX: Final = 2_097_152
"""The same of an account of which no deposit was ever held: more than five hundred small ones, or the seven largest."""

NEW_ACCOUNTS_BYTES_MAX: Final = 4_194_304
"""The same of all those accounts together, with what was refused to them in the current round: keys cost nothing."""

SHORT_ESCROWS_MAX: Final = 4
"""Jobs of one account, waiting or refused in the current round, once as many were refused one after the other."""

STATEMENT_ENTRIES_MAX: Final = 100
"""Journal entries in one page of an account's statement."""

RECEIPT_BYTES_MAX: Final = 64_000_000
"""A receipt in its binary form; what is larger is read from the record itself."""

RECEIPT_TEXT_BYTES_MAX: Final = 90_000_000
"""A receipt as JSON: base64 makes four characters of three bytes."""

RECEIPT_ENVELOPES_MAX: Final = 16_384
"""Envelopes in one list of a receipt."""

RECEIPT_PART_BYTES_MAX: Final = 900_000
"""A receipt travels in parts, each in one message."""

RECEIPT_PARTS_MAX: Final = 128

NOTE_BYTES_MAX: Final = 16_384
"""A checkpoint of the log as a signed note, with the lines of its witnesses."""

NOTE_SIGNATURES_MAX: Final = 32

WITNESSES_MAX: Final = 16
"""Witnesses that a network may name."""

ENTRY_TEXT_BYTES_MAX: Final = 1_500_000
"""One message of an exported record, as a line of JSON."""

MICRO_MAX: Final = 2**63 - 1
"""Largest amount of money: what a signed 64-bit column holds."""

TIME_MS_MAX: Final = 2**53
ROUND_MAX: Final = 2**63 - 1

TEMPERATURE_MICRO_MAX: Final = 100_000_000
TOP_K_MAX: Final = 1_000_000
TOP_P_MICRO_ONE: Final = 1_000_000

assert PROMPT_TOKENS_MAX * TOKEN_BYTES + OUTPUT_TOKENS_MAX * TOKEN_BYTES < PAYLOAD_BYTES_MAX
assert LEAF_BYTES_MAX + 32 * MULTIPROOF_DIGESTS_MAX // 2 < CARRIED_BYTES_MAX
assert CARRIED_BYTES_MAX + 1_024 < PAYLOAD_BYTES_MAX
assert RECEIPT_BYTES_MAX <= RECEIPT_PARTS_MAX * RECEIPT_PART_BYTES_MAX
assert PAYLOAD_BYTES_MAX * 4 // 3 + 2_048 < ENTRY_TEXT_BYTES_MAX
assert RECEIPT_BYTES_MAX * 4 // 3 < RECEIPT_TEXT_BYTES_MAX
assert RECEIPT_PART_BYTES_MAX + 4_096 < PAYLOAD_BYTES_MAX
assert PROMPT_TOKENS_MAX * TOKEN_BYTES + 1_024 + ESCROW_ENTRY_BYTES < NEW_ACCOUNT_ESCROW_BYTES_MAX // 7
assert min(ESCROW_BYTES_MAX, NEW_ACCOUNTS_BYTES_MAX) > NEW_ACCOUNT_ESCROW_BYTES_MAX
assert STAGE_COUNT_MAX <= SEAT_COUNT_MAX < COMPARISONS_MAX
assert OUTPUT_TOKENS_MAX < LEAF_COUNT_MAX < 2**31
