"""``negindex serve``: the service over the sets of a directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from negindex.tools.common import errors_to_exit_codes


class _OfSet(click.ParamType[tuple[str, str]]):
    """SET=WHAT."""

    def __init__(self, what: str) -> None:
        self.name = f"SET={what}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, sign, said = str(value).partition("=")
        if not (name and sign and said):
            self.fail(f"{value!r}; give {self.name}", param, ctx)
        return name, said


_FLAGS = {  # flag: its type; names, defaults and help are those of ``negindex.service.settings.Settings``
    "host": str,
    "port": int,
    "workers": int,
    "threads": int,
    "certificate": click.Path(path_type=Path),
    "certificate_key": click.Path(path_type=Path),
    "body_bytes": int,
    "body_seconds": float,
    "header_bytes": int,
    "samples": int,
    "waiting": int,
    "connections": int,
    "rate": float,
    "burst": float,
    "strangers": float,
    "pins": int,
    "upkeep_seconds": float,
    "key": click.Path(path_type=Path),
    "engine": _OfSet("ADDRESS"),
    "engine_seconds": float,
    "encoder": _OfSet("FOLDER"),
    "uploads": int,
    "backup_every": str,
    "backup_to": click.Path(path_type=Path),
    "backup_keep": int,
    "webhook": str,
    "oidc_issuer": str,
    "oidc_client": str,
    "oidc_secret_file": click.Path(path_type=Path),
    "oidc_address": str,
    "oidc_scope": str,
    "oidc_claim": str,
    "oidc_grants": str,
    "oidc_minutes": float,
    "traces": bool,
    "log_level": str,
    "grace_seconds": int,
}


class _ServeCommand(click.Command):
    """Takes its flags from the settings, which load only when the command is asked for."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        try:
            from negindex.service.settings import PREFIX, Settings
        except ModuleNotFoundError as error:
            raise click.UsageError(f'{error.name} is missing: pip install "negindex[service]"') from error

        known = super().get_params(ctx)
        for name, kind in _FLAGS.items():
            field = Settings.model_fields[name]
            many = isinstance(kind, _OfSet) or isinstance(field.default, tuple)
            default = "none" if field.default in (None, (), {}) else field.default
            words = f"{field.description}  [env: {PREFIX}{name.upper()}; default: {default}]"
            flag = f"--{name.replace('_', '-')}"
            if kind is bool:
                known.append(click.Option([flag], is_flag=True, default=None, help=words))
            else:
                known.append(click.Option([flag], type=kind, help=words, multiple=many))
        return known


@click.command(
    cls=_ServeCommand,
    epilog="""\b
Examples:
  negindex serve sets/
  negindex serve sets/ --config service.toml --print-config
  negindex serve sets/ --backup-every 24h --backup-to /mnt/backups --backup-keep 14
  negindex serve sets/ --encoder faces.set=models/sd15 --key service.key
  negindex serve sets/ --engine claims.set=milvus://127.0.0.1:19530/claims
  negindex serve sets/ --host 0.0.0.0 --certificate chain.pem --certificate-key key.pem --workers 4
""",
)
@click.argument("root", metavar="[DIR]", type=click.Path(path_type=Path), required=False)
@click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="Settings in TOML.")
@click.option("--insecure", is_flag=True, default=None, help="Listen beyond this machine without TLS or keys.")
@click.option("--print-config", is_flag=True, help="Print every setting and where it is from, and do nothing else.")
@errors_to_exit_codes
def serve(file: Path | None, print_config: bool, **flags: Any) -> None:
    """Answer samplers over HTTP from the sets in DIR, one directory each; and people, by pages at the same address.

    Flags go before the environment, that before the file. On this machine alone the service runs without keys; as
    soon as DIR has keys (`negindex apikey create`), every question needs one. SIGTERM stops it when the answers under
    way are finished; log lines are JSON, on stderr.
    """
    from negindex.service.settings import read_settings, shown

    flags |= {name: dict(flags[name]) or None for name, kind in _FLAGS.items() if isinstance(kind, _OfSet)}
    settings, origins = read_settings({name: value for name, value in flags.items() if value not in (None, ())}, file)
    if print_config:
        click.echo(json.dumps(shown(settings, origins), indent=2, ensure_ascii=False))
        return
    from negindex.sampler.for_pages import ForPages
    from negindex.service.run import run
    from negindex.tools.key import passphrase_of

    run(settings, ForPages(), None if settings.key is None else passphrase_of(settings.key))
