"""Settings come from the environment, complete each other, and never show a secret."""

import pytest

from uho_pipelines.settings import NETWORK_DEFAULTS, SettingsError, UnknownNetworkError, load_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("UHO_HOME", "UHO_POSTGRES_URL", "UHO_LAKE_DIR", "UHO_SIDECAR_SECRET", "UHO_PROGRAMS_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_need_be_set(tmp_path):
    settings = load_settings()
    assert settings.home == tmp_path / ".uho"
    assert settings.lake_dir == str(tmp_path / ".uho" / "lake")
    assert settings.network("mainnet").chunk_slots == 100_000
    assert settings.network("sim").archive_url == f"file://{tmp_path}/.uho/sim"
    assert settings.read_sidecar_secret() is None


def test_one_setting_of_a_network_leaves_its_others(monkeypatch):
    monkeypatch.setenv("UHO_NETWORKS__MAINNET__CHUNK_SLOTS", "50000")
    monkeypatch.setenv("UHO_NETWORKS__DEVNET__ARCHIVE_URL", "file:///devnet")
    settings = load_settings()
    assert settings.network("mainnet").chunk_slots == 50_000
    assert settings.network("mainnet").archive_url == "https://files.old-faithful.net"
    assert settings.network("devnet").archive_url == "file:///devnet"
    assert settings.network("sim").chunk_slots == NETWORK_DEFAULTS["sim"]["chunk_slots"]


def test_an_unknown_network_says_what_to_set():
    with pytest.raises(UnknownNetworkError, match="UHO_NETWORKS__TESTNET__ARCHIVE_URL"):
        load_settings().network("testnet")


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("UHO_NETWORKS__MAINNET__CHUNK_SLOT", "5", "CHUNK_SLOT"),
        ("UHO_NETWORKS__MAINNET__VERIFY", "some", "VERIFY"),
        ("UHO_NETWORKS__MAINNET__CHUNK_SLOTS", "1500", "multiple of checkpoint_slots"),
        ("UHO_NETWORKS__MAIN_NET__CHUNK_SLOTS", "1000", "network name"),
        ("UHO_SIDECAR_STALL_SECONDS", "0", "SIDECAR_STALL_SECONDS"),
    ],
)
def test_a_fault_names_the_variable(monkeypatch, variable, value, named):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=named):
        load_settings()


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("UHO_POSTGRES_URL", "postgresql://uho:hunter2@localhost/uho")
    monkeypatch.setenv("UHO_SIDECAR_SECRET", "hunter2")
    settings = load_settings()
    assert "hunter2" not in repr(settings)
    assert settings.read_sidecar_secret() == "hunter2"


def test_the_sidecars_secret_is_read_from_its_file():
    settings = load_settings()
    folder = settings.home / "secrets"
    folder.mkdir(parents=True)
    (folder / "sidecar").write_text("from the file\n")
    assert settings.read_sidecar_secret() == "from the file"
