"""The ledger: accounts, stakes, each job's pool, settlement, and the journal of all of it."""
