"""Running what the pipelines need on one machine: Postgres, the sidecar, Dagster."""
