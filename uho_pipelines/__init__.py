"""Backfills a Solana program's whole event history from the Old Faithful archive into Postgres, proved complete."""
