"""Who may ask what, written down beside the code: a route that is not here, or is for others there, fails the tests."""

ANYBODY = ("anybody",)
ALL = ("sampler", "curator", "approver", "auditor", "admin")
ASKERS = ("sampler", "curator", "approver", "admin")
READERS = ("curator", "approver", "auditor", "admin")
HANDLERS = ("curator", "approver", "admin")
INTAKE = ("curator", "admin")
DECIDERS = ("approver", "admin")
AUDITORS = ("auditor", "admin")

API = {
    "GET /health/live": ANYBODY,
    "GET /health/ready": ANYBODY,
    "GET /metrics": AUDITORS,
    "GET /v1/openapi.json": ALL,
    "GET /v1/sets": ALL,
    "GET /v1/sets/{name}": ALL,
    "GET /v1/sets/{name}/health": ALL,
    "GET /v1/sets/{name}/versions/{version}": ALL,
    "GET /v1/sets/{name}/versions/{version}/kernel": ASKERS,
    "GET /v1/sets/{name}/versions/{version}/digests": ASKERS,
    "POST /v1/sets/{name}/posterior": ASKERS,
    "POST /v1/sets/{name}/near": ASKERS,
    "POST /v1/sets/{name}/moments": ASKERS,
    "POST /v1/sets/{name}/holds": ASKERS,
    "POST /v1/sets/{name}/source-keys": ASKERS,
    "POST /v1/sets/{name}/rows": HANDLERS,
}

_SET = "/pages/sets/{name}"
_CLAIM = f"{_SET}/claims/{{number}}"
_ROW = f"{_SET}/rows/{{row}}"
PAGES = {
    "GET /": ANYBODY,
    "GET /pages/login": ANYBODY,
    "POST /pages/login": ANYBODY,
    "GET /pages/static/{file}": ANYBODY,
    "GET /pages/oidc/start": ANYBODY,
    "GET /pages/oidc/back": ANYBODY,
    "POST /pages/logout": ALL,
    "GET /pages": READERS,
    "GET /pages/receipts": READERS,
    "POST /pages/receipts": READERS,
    "GET /pages/reveals": AUDITORS,
    f"GET {_SET}/status": READERS,
    f"GET {_SET}/history": READERS,
    f"GET {_SET}/claims": READERS,
    f"GET {_CLAIM}": READERS,
    f"GET {_ROW}": READERS,
    f"GET {_ROW}/blurred": HANDLERS,
    f"POST {_ROW}/reveal": HANDLERS,
    f"GET {_SET}/search": HANDLERS,
    f"POST {_SET}/search": HANDLERS,
    f"GET {_SET}/new-claim": INTAKE,
    f"POST {_SET}/new-claim": INTAKE,
    f"POST {_SET}/open-claim": INTAKE,
    f"GET {_CLAIM}/attach": INTAKE,
    f"POST {_CLAIM}/attach": INTAKE,
    f"POST {_CLAIM}/attach-now": INTAKE,
    f"POST {_CLAIM}/amend": INTAKE,
    f"POST {_CLAIM}/claimant": HANDLERS,
    f"POST {_CLAIM}/dispute": HANDLERS,
    f"POST {_CLAIM}/stay": HANDLERS,
    f"POST {_CLAIM}/hold": HANDLERS,
    f"POST {_CLAIM}/release": HANDLERS,
    f"POST {_CLAIM}/accept": DECIDERS,
    f"POST {_CLAIM}/uphold": DECIDERS,
    f"POST {_CLAIM}/withdraw": DECIDERS,
    f"POST {_CLAIM}/erase-ask": DECIDERS,
    f"POST {_CLAIM}/erase-take-back": DECIDERS,
    f"POST {_CLAIM}/erase-approve": DECIDERS,
    f"POST {_SET}/withdraw": DECIDERS,
    f"POST {_SET}/withdraw-now": DECIDERS,
}


def every_route(router):
    """(method, route) of everything that a router or an application answers, the routers in it too."""
    for route in router.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from every_route(inner)
        else:
            for method in sorted(route.methods - {"HEAD"}):
                yield method, route
