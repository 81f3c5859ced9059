"""Every setting, typed, in one place: environment variables with the prefix `UHO_`, or none at all.

What belongs here: what an operator decides. Nested settings are set with two underscores,
`UHO_NETWORKS__MAINNET__ARCHIVE_URL`. What is decided for a program lives in its `program.yaml`.
"""

import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from uho_pipelines.errors import UhoError

NETWORK_DEFAULTS: dict[str, dict[str, Any]] = {
    "mainnet": {"archive_url": "https://files.old-faithful.net"},
    "sim": {"chunk_slots": 350, "checkpoint_slots": 50, "rpc_calls_per_second": 1_000},
}
"""What networks are like unless set otherwise. The archive of `sim` is `UHO_HOME/sim`, the simulator's."""

NAME = re.compile(r"[a-z][a-z0-9]{0,15}")
"""A network's or owner's name: no underscore, so that `<owner>_<network>_<program>` has one reading."""


class SettingsError(UhoError):
    """Settings that cannot be used; the message names each variable and its fault, never its value."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("settings: " + "; ".join(faults))


class UnknownNetworkError(UhoError):
    """A network that no setting describes."""

    def __init__(self, network: str, known: list[str]) -> None:
        self.network = network
        self.known = known
        super().__init__(
            f"network {network!r} is not known (known: {', '.join(known)}): "
            f"set UHO_NETWORKS__{network.upper()}__ARCHIVE_URL"
        )


class NetworkSettings(BaseModel):
    """One network: where its archive is and how its slots are cut."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    archive_url: str | None = None
    """The archive: `https://…`, `file:///…` or a folder. The sidecar is told of it; None: the network is not served."""

    rpc_url: SecretStr | None = None
    """A JSON-RPC endpoint for integrity checks. None: those checks warn."""

    rpc_calls_per_second: Annotated[float, Field(gt=0, le=100_000)] = 10.0
    """So many calls a second are made of the RPC node, by each run."""

    rpc_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 20.0
    """Seconds without a byte of the RPC node after which an attempt is given up."""

    chunk_slots: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    """Slots in a chunk, the unit of work. Fixed for a network at first use."""

    checkpoint_slots: Annotated[int, Field(ge=1, le=432_000)] = 1_000
    """Slots between two checkpoints of a stream: a part of the lake holds at most so many."""

    verify: Literal["full", "matched", "off"] = "full"
    """Whose SHA-256 is compared with its CID: every section's, the matched transactions', nobody's."""


class EmailSettings(BaseModel):
    """Where alerts are mailed, and through which server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    port: Annotated[int, Field(ge=1, le=65_535)] = 587
    tls: Literal["starttls", "tls", "none"] = "starttls"
    user: str | None = None
    password: SecretStr | None = None
    sender: str
    recipients: Annotated[tuple[str, ...], Field(min_length=1)]


class AlertSettings(BaseModel):
    """Who is told of failed runs, failed checks, halts and stalls. Nothing set: alerts are kept in the ledger alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    webhook_url: SecretStr | None = None
    """Is sent a JSON object by POST."""

    slack_url: SecretStr | None = None
    """A Slack incoming webhook."""

    email: EmailSettings | None = None

    quiet_seconds: Annotated[int, Field(ge=1)] = 6 * 3600
    """A cause that has not occurred for so long is told of again when it comes back."""


class Settings(BaseSettings):
    """All settings. `load_settings()` reads them from the environment; tests make them by hand."""

    model_config = SettingsConfigDict(env_prefix="UHO_", env_nested_delimiter="__", extra="forbid", frozen=True)

    home: Path = Path(".uho")
    """State: Postgres, lake, secrets (mode 0600), logs. Absolute once loaded."""

    programs_dir: Path = Path(__file__).parent / "programs"
    """The folder of program folders."""

    postgres_url: SecretStr | None = None
    """The warehouse, a Postgres of version 16 or later. None: the embedded one, whose URL `uho` fills in."""

    sidecar_url: str = "http://127.0.0.1:3001"
    """Where the sidecar listens."""

    sidecar_secret: SecretStr | None = None
    """The sidecar's bearer secret. None: the file `UHO_HOME/secrets/sidecar`."""

    sidecar_connect_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Seconds to wait for a connection to the sidecar."""

    sidecar_stall_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Seconds without a byte after which a stream counts as dead. Between two checkpoints of 1,000 slots lie about
    1.5 GB of a recent epoch: 12 s at 1 Gbps, 2 minutes at 100 Mbps."""

    lake_dir: str = ""
    """The lake: a folder, or `s3://bucket/prefix`. Empty: `UHO_HOME/lake`."""

    events_dir: str = ""
    """Decoded events as Parquet, of programs that ask for it: a folder, or `s3://bucket/prefix`. Empty:
    `UHO_HOME/events`."""

    networks: dict[str, NetworkSettings] = Field(default_factory=dict)
    """Networks by name; what is not set is as in `NETWORK_DEFAULTS`."""

    disk_reserve_bytes: Annotated[int, Field(ge=0)] = 2 * 1024**3
    """Bytes that must stay free on the lake's disk; a chunk that would not leave them is refused before it begins."""

    integrity_samples: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Transactions that a job (a Dagster backfill, or a run without one) compares with the RPC node, half of them drawn
    from stored rows, half from the chain; at least one a chunk."""

    integrity_blocks: Annotated[int, Field(ge=1, le=1_000)] = 20
    """Blocks of a chunk that are looked at for the chain's samples, at most: about 5 MB each on mainnet."""

    integrity_seconds: Annotated[float, Field(gt=0, le=3_600)] = 60.0
    """Seconds that a chunk's comparison may take of the RPC node; what it did not answer by then is not served."""

    webserver_port: Annotated[int, Field(ge=1, le=65_535)] = 3000
    """Port of the Dagster UI on 127.0.0.1."""

    code_server_port: Annotated[int, Field(ge=1, le=65_535)] = 3002
    """Port of Dagster's code server on 127.0.0.1."""

    user_header: str | None = None
    """The header by which a reverse proxy says who asks, `X-Forwarded-User`. None: people are not told apart."""

    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """The addresses whose `user_header` is believed: `["127.0.0.1/32"]`. From others everybody is `anonymous`."""

    backfill_start_seconds: Annotated[int, Field(ge=0)] = 300
    """A person may start one backfill in so many seconds; 0: as often as they like. Counts where people are told
    apart."""

    archive_streams: Annotated[int, Field(ge=1, le=64)] = 2
    """So many chunks are read from archives at once; also the jobs that the sidecar of `uho up` takes."""

    warehouse_writers: Annotated[int, Field(ge=1, le=64)] = 4
    """So many chunks are loaded into Postgres at once."""

    runs_at_once: Annotated[int, Field(ge=1, le=1_000)] = 8
    """So many runs are under way at once: those that read and write, and room for what does neither."""

    runs_per_person: Annotated[int, Field(ge=1, le=1_000)] = 4
    """So many of them are of one person, where people are told apart."""

    user_priorities: dict[str, Annotated[int, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    """The priority of a person's runs, `{"alice": 5}`; 0 for everybody else. Higher goes first, before all turns."""

    program_priorities: dict[str, Annotated[int, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    """The priority of a program's runs, `{"mainnet/acme/amm": 5}`, added to the person's. A run's own
    `dagster/priority` counts instead of both."""

    worker_check_seconds: Annotated[int, Field(ge=1, le=120)] = 30
    """Seconds between two looks at whether the workers of runs live; one that is not there twice is gone."""

    archive_tip_seconds: Annotated[int, Field(ge=1)] = 600
    """Seconds between two looks at whether the archive has a new epoch."""

    stall_slots: Annotated[int, Field(ge=1)] = 648_000
    """A program that follows the archive is stalled when it is further behind. An epoch and a half, three days: a new
    epoch alone puts a program one epoch behind, and a chunk more."""

    run_retention_days: Annotated[int, Field(ge=1)] = 30
    """Runs of so many days ago are forgotten by Dagster, but for those that a partition's newest state rests on."""

    alerts: AlertSettings = AlertSettings()
    """Who is told of what went wrong, `UHO_ALERTS__SLACK_URL` and so on."""

    ui_url: str = ""
    """Where people find the Dagster UI, for links in alerts: `https://dagster.example.org`. Empty: on this machine."""

    @field_validator("networks", mode="before")
    @classmethod
    def _with_default_networks(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        given = {str(name): settings for name, settings in cast("dict[object, object]", value).items()}
        for name in given:
            if NAME.fullmatch(name) is None:
                raise ValueError(
                    f"{name!r} is no network name: a letter, then letters and digits, lower case, at most 16"
                )
        return {**NETWORK_DEFAULTS, **{name: _merged(NETWORK_DEFAULTS.get(name), own) for name, own in given.items()}}

    @model_validator(mode="before")
    @classmethod
    def _networks_are_there(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {"networks": {}, **values}

    @model_validator(mode="after")
    def _complete(self) -> "Settings":
        # The model is frozen for everybody else; what follows from other settings is filled in once, here.
        home = self.home.expanduser().absolute()
        object.__setattr__(self, "home", home)
        object.__setattr__(self, "programs_dir", self.programs_dir.expanduser().absolute())
        object.__setattr__(self, "sidecar_url", self.sidecar_url.rstrip("/"))
        object.__setattr__(self, "ui_url", (self.ui_url or f"http://127.0.0.1:{self.webserver_port}").rstrip("/"))
        if not self.lake_dir:
            object.__setattr__(self, "lake_dir", str(home / "lake"))
        if not self.events_dir:
            object.__setattr__(self, "events_dir", str(home / "events"))
        simulated = self.networks["sim"]
        if simulated.archive_url is None:
            self.networks["sim"] = simulated.model_copy(update={"archive_url": f"file://{home / 'sim'}"})
        for name, network in self.networks.items():
            if network.chunk_slots % network.checkpoint_slots:
                raise ValueError(
                    f"networks.{name}: chunk_slots ({network.chunk_slots}) must be a multiple of checkpoint_slots "
                    f"({network.checkpoint_slots})"
                )
        return self

    def network(self, name: str) -> NetworkSettings:
        """Return the settings of the network `name`.

        Raises:
            UnknownNetworkError: there are none.
        """
        if name not in self.networks:
            raise UnknownNetworkError(name, sorted(self.networks))
        return self.networks[name]

    def read_sidecar_secret(self) -> str | None:
        """Return the sidecar's bearer secret: the setting, else the file `UHO_HOME/secrets/sidecar`, else None."""
        if self.sidecar_secret is not None:
            return self.sidecar_secret.get_secret_value()
        path = self.home / "secrets" / "sidecar"
        return path.read_text(encoding="ascii").strip() if path.is_file() else None


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: a variable has a fault. Its value, which may be a secret, is not repeated.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError([_fault(item) for item in error.errors(include_input=False, include_url=False)]) from None


def _merged(defaults: dict[str, Any] | None, own: object) -> object:
    if isinstance(own, NetworkSettings):
        own = own.model_dump(exclude_unset=True)
    return {**(defaults or {}), **cast("dict[str, Any]", own)} if isinstance(own, dict) else own


def _fault(item: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    place = "__".join(str(part) for part in item["loc"]).upper()
    return f"UHO_{place}: {item['msg']}" if place else str(item["msg"])
