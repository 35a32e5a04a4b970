"""The API does what its own description says, asked by schemathesis with what it makes up."""

from __future__ import annotations

from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from femtobooth.studio.app import create_app
from femtobooth.studio.state import Studio
from femtobooth.workflows.settings import StudioSettings

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DRAW = ("/sdapi/v1/txt2img", "/v1/images/generations", "/api/v1/generate")  # which would, for as long as that takes


def test_the_api_is_what_it_says(tmp_path: Path) -> None:
    studio = Studio(StudioSettings(folder=str(tmp_path)))
    studio.runner.begin = lambda: None  # type: ignore[method-assign]
    host = {"host": "localhost:8765"}
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", create_app(studio), headers=host)
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path in DRAW:
            continue

        @settings(
            max_examples=3,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=host, checks=CHECKS)

        ask()
        asked += 1
    assert asked > 50
