"""The verifier pool: who may verify, who is drawn, what they sealed, and how a dispute ends."""
