"""The commitment store: a log of one commitment per attempt, its audit lottery, challenges and openings."""
