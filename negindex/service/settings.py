"""What the service is told: flags before environment (NEGINDEX_*) before a TOML file before defaults."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from negindex.clocks import length
from negindex.engines.address import Address
from negindex.errors import InvalidInput, NotAllowed, NotThere
from negindex.store import CATALOGUE

PREFIX = "NEGINDEX_"


def _known_length(text: str) -> str:
    if not length(text):
        raise ValueError(f"{text!r} is no time at all; give minutes, hours or days, such as 24h")
    return text


def _known_engine(text: str) -> str:
    try:
        return Address.of(text).text
    except InvalidInput as error:
        raise ValueError(str(error)) from None


class Settings(BaseSettings):
    """Every setting of the service; the description is the flag's help."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    root: Path = Field(Path("."), description="The directory that holds the sets.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8321, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=256, description="Processes that answer.")
    threads: int = Field(1, ge=1, le=256, description="Threads that one worker computes with.")
    certificate: Path | None = Field(None, description="TLS certificate chain, PEM.")
    certificate_key: Path | None = Field(None, description="The certificate's key, PEM.")
    insecure: bool = Field(False, description="Listen beyond this machine without TLS or keys, and say so.")
    body_bytes: int = Field(1 << 26, ge=1024, le=1 << 32, description="Most bytes of a request's body.")
    body_seconds: float = Field(30.0, gt=0, description="Longest time that a body may take to come.")
    header_bytes: int = Field(1 << 14, ge=1024, le=1 << 20, description="Most bytes of a request's headers.")
    samples: int = Field(1024, ge=1, description="Most samples of a request, and of requests answered together.")
    waiting: int = Field(8192, ge=1, description="Most samples that wait for one set, per worker.")
    connections: int = Field(1024, ge=1, description="Most connections of a worker.")
    rate: float = Field(500.0, gt=0, description="Requests a second of one key, per worker.")
    burst: float = Field(2000.0, ge=1, description="Requests of one key at once, per worker.")
    strangers: float = Field(5.0, gt=0, description="Wrong keys a second of one address, per worker.")
    pins: int = Field(64, ge=1, description="Versions of a set that a worker keeps open for samplers in mid-run.")
    upkeep_seconds: float = Field(60.0, gt=0, description="Between rounds of compaction, settling and alarms.")
    backup_every: Annotated[str, AfterValidator(_known_length)] | None = Field(
        None, description="Back up every set so often, such as 24h; needs --backup-to."
    )
    backup_to: Path | None = Field(None, description="The folder of the backups, one in it for each set.")
    backup_keep: int = Field(7, ge=1, description="Backups of a set that are kept; older ones are deleted.")
    key: Path | None = Field(
        None, description="Sign the checkpoint of what is changed on pages (`negindex key new` makes a key)."
    )
    engine: dict[str, Annotated[str, AfterValidator(_known_engine)]] = Field(
        {}, description="Milvus, milvus://HOST:PORT/NAME, that a set's index lies in and answers through."
    )
    engine_seconds: float = Field(10.0, gt=0, description="Longest time that one question to an engine may take.")
    encoder: dict[str, Path] = Field(
        {},
        description="Folder of the VAE, or of its pipeline, that makes a set's rows of latents from images on pages.",
    )
    uploads: int = Field(8, ge=1, description="Uploads to pages that wait to be decoded and encoded, per worker.")
    webhook: SecretStr | None = Field(
        None, description="URL that is told of deadlines near or missed, and failed backups."
    )
    oidc_issuer: str | None = Field(None, description="OpenID provider that people log in with: its issuer's URL.")
    oidc_client: str | None = Field(None, description="The id that the provider knows this service by.")
    oidc_secret: SecretStr | None = Field(None, description="The client's secret: by environment or file alone.")
    oidc_secret_file: Path | None = Field(None, description="A file that holds the client's secret, mode 600.")
    oidc_address: str | None = Field(None, description="This service's own address, as browsers see it.")
    oidc_scope: str = Field("openid", description="What the provider is asked for, openid among it.")
    oidc_claim: str = Field("groups", min_length=1, description="The ID token's claim that names a person's groups.")
    oidc_grants: tuple[str, ...] = Field(
        (), description="GROUP=ROLE[,ROLE][@SET[,SET]]: what a group may do on pages; may be given again."
    )
    oidc_minutes: float = Field(
        60.0, gt=0, le=600, description="After which a person's session ends, and the provider is asked again."
    )
    traces: bool = Field(False, description="Send OpenTelemetry's spans where the OTEL_* environment says.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    grace_seconds: int = Field(20, ge=1, description="Time that answers under way get when the service stops.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Everything comes through ``read_settings``, which knows where each value is from."""
        return (init_settings,)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        return is_local(self.host)

    @property
    def has_tls(self) -> bool:
        """Whether there is a certificate."""
        return self.certificate is not None


@lru_cache(maxsize=256)  # asked of each request that needs no key
def is_local(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_settings(flags: dict[str, Any], file: Path | None = None) -> tuple[Settings, dict[str, str]]:
    """The settings, and {name: where its value is from}. Raises InvalidInput, naming the setting, and NotThere."""
    if file is not None and not file.is_file():
        raise NotThere(f"{file} is no file of settings; write one in TOML, or leave --config out")
    try:
        sources = {
            "flag": InitSettingsSource(Settings, flags),
            "environment": EnvSettingsSource(Settings),
            f"file {file}": None if file is None else TomlConfigSettingsSource(Settings, file),
        }
        found = {origin: source() for origin, source in sources.items() if source is not None}
        values: dict[str, Any] = {}
        origins = dict.fromkeys(Settings.model_fields, "default")
        for origin, said in reversed(found.items()):
            values |= said
            origins |= dict.fromkeys(said, origin)
        return Settings(**values), {name: _origin(name, origins[name]) for name in Settings.model_fields}
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"setting {name}: {first['msg']}; `negindex serve --help` lists them") from error
    except (SettingsError, ValueError) as error:
        raise InvalidInput(f"settings that cannot be read ({error}); see `negindex serve --help`") from error


def shown(settings: Settings, origins: dict[str, str]) -> dict[str, dict[str, Any]]:
    """{setting: value and origin}, secrets hidden, for ``--print-config``."""
    values = settings.model_dump(mode="json")
    return {name: {"value": values[name], "from": origins[name]} for name in values}


def check_exposure(settings: Settings, keys: bool) -> list[str]:
    """What is open to others than this machine's users, in words. Raises NotAllowed unless that was asked for."""
    if (settings.certificate is None) != (settings.certificate_key is None):
        raise InvalidInput("a certificate without its key, or the other way about; give both")
    if settings.is_local:
        return []
    missing = [] if settings.has_tls else ["no TLS: keys and rows travel in the clear"]
    missing += [] if keys else ["no keys: whoever reaches the port may ask"]
    if missing and not settings.insecure:
        raise NotAllowed(
            f"{settings.host} can be reached from other machines, and there is {'; '.join(missing)}. Give "
            "--certificate and --certificate-key, and make keys (`negindex apikey create`); or say --insecure"
        )
    return missing


def check_backups(settings: Settings) -> None:
    """Raise where backups on schedule have no place of their own: InvalidInput, NotThere."""
    if (settings.backup_every is None) != (settings.backup_to is None):
        raise InvalidInput("backup_every without backup_to, or the other way about; give both")
    if settings.backup_to is None:
        return
    if not settings.backup_to.is_dir():
        raise NotThere(f"{settings.backup_to} is no directory; make it, or mount the disk that it is on")
    to, root = settings.backup_to.resolve(), settings.root.resolve()
    if to == root or root in to.parents:
        raise InvalidInput(f"backups in {to}, within the sets' own {root}; name a place elsewhere, on another disk")


def check_engines(settings: Settings) -> None:
    """Raise where a set has an engine that it could not be asked through: NotThere, InvalidInput."""
    if settings.engine and find_spec("pymilvus") is None:
        raise InvalidInput("an engine cannot be asked without pymilvus: pip install 'negindex[milvus]'")
    for name, address in settings.engine.items():
        if not (settings.root / name / CATALOGUE).is_file():
            raise NotThere(f"engine of {name}: no set of this name is served from {settings.root}")
        if Address.of(address).is_file:
            raise InvalidInput(
                f"engine of {name}: {address} is a file of Milvus Lite, which one process has open at a time, and a "
                "service is several; give milvus://HOST:PORT/NAME"
            )


def _origin(name: str, origin: str) -> str:
    return f"environment {PREFIX}{name.upper()}" if origin == "environment" else origin
