"""The role of each owner: it reads the schemas of the owner's programs, and nothing else.

What belongs here: the role and what it is granted. Nobody logs in as it: people are made its members
(`GRANT acme TO alice`).
"""

import psycopg
from psycopg import sql

from uho_pipelines.errors import UhoError
from uho_pipelines.registry import Program
from uho_pipelines.warehouse.connection import Connection


class OwnerRoleError(UhoError):
    """The warehouse's user may not make an owner's role."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        super().__init__(
            f"the warehouse's user may not make the role {owner!r}, which reads the tables of owner {owner}. "
            f'Have an administrator CREATE ROLE "{owner}" NOLOGIN, once'
        )


def ensure_owner_role(connection: Connection, program: Program) -> None:
    """Have the role of the program's owner, and let it read the program's schema: what is there and what will be.

    In the caller's transaction, which holds the lock of the program's tables; the schema must be there.

    Raises:
        OwnerRoleError: it is not there, and may not be made.
    """
    granted = connection.execute(
        "SELECT has_schema_privilege(oid, %s, 'USAGE') FROM pg_roles WHERE rolname = %s",
        [program.schema_name, program.owner],
    ).fetchone()
    if granted == (True,):
        return
    owner, schema = sql.Identifier(program.owner), sql.Identifier(program.schema_name)
    if granted is None:
        try:
            with connection.transaction():
                connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(owner))
        except psycopg.errors.InsufficientPrivilege:
            raise OwnerRoleError(program.owner) from None
        except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            pass  # another program of the owner made it at this moment
    for statement in (
        "GRANT USAGE ON SCHEMA {schema} TO {owner}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {owner}",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {owner}",
    ):
        connection.execute(sql.SQL(statement).format(schema=schema, owner=owner))
