"""Logs as JSON lines on stderr: what happened, never who it was about. No addresses, no queries, no bodies, no words of
errors: those may hold source keys.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

NAME = "negindex.service"
_LOGGER = logging.getLogger(NAME)


def log(event: str, level: int = logging.INFO, **said: Any) -> None:
    """One line."""
    _LOGGER.log(level, event, extra={"said": said})


class JsonLines(logging.Formatter):
    """A record as one line of JSON. Of an error, its class and the places that it came through."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "process": record.process,
            **getattr(record, "said", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            said |= {"error": record.exc_info[0].__name__, "at_line": [f"{f.filename}:{f.lineno}" for f in frames[-5:]]}
        return json.dumps(said, ensure_ascii=False, default=str)


def log_config(level: str) -> dict[str, Any]:
    """For ``logging.config.dictConfig``, and for uvicorn."""
    handler = {"class": "logging.StreamHandler", "formatter": "lines", "stream": "ext://sys.stderr"}
    quiet = {"handlers": ["stderr"], "level": "WARNING", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": f"{__name__}.JsonLines"}},
        "handlers": {"stderr": handler},
        "loggers": {
            NAME: {"handlers": ["stderr"], "level": level.upper(), "propagate": False},
            "uvicorn": quiet,
            "uvicorn.error": {"level": "WARNING"},
            "uvicorn.access": {"handlers": [], "level": "CRITICAL", "propagate": False},
        },
    }
