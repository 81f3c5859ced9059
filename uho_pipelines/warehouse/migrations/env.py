"""Alembic's entry: runs the migrations on the connection that `uho_pipelines.warehouse.migrate` hands over."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], version_table="schema_version", version_table_schema="uho"
)
context.run_migrations()
