"""ASGI application of a server: routes, OpenAPI document, documentation page and demo page."""

import json
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from importlib.resources import files
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import TypeAdapter
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from slmrec.files import one_line
from slmrec.serving.http.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ConflictError,
    InvalidRequestError,
    MalformedJsonError,
    OverloadedError,
    RequestError,
    UnauthorizedError,
    UnsupportedMediaTypeError,
    error_response,
)
from slmrec.serving.http.head import HostCheck, check_parameters
from slmrec.serving.messages import (
    Answer,
    Answers,
    DroppedSession,
    Error,
    ExampleUsers,
    Items,
    Models,
    ReloadRequest,
    ReloadResult,
    Status,
    describe_faults,
)
from slmrec.serving.queries import query_examples
from slmrec.serving.server import Server
from slmrec.version import __version__

RouteHandler = Callable[[Request], Coroutine[Any, Any, Response]]
_DESCRIPTION = (
    'Next-item recommendations for histories of item ids. Every error is answered with `{"error": text}`; '
    "status 503 comes with the header `Retry-After`."
)
_ASSETS = "/docs/assets"
_BODY_ERRORS = (MalformedJsonError, BodyTimeoutError, BodyTooLargeError, UnsupportedMediaTypeError, InvalidRequestError)


class _AnyConvertor(PathConvertor):
    """Rest of a path, with any characters, line breaks too."""

    regex = r"[\s\S]*"


register_url_convertor("any", _AnyConvertor())


def create_app(server: Server) -> ASGIApp:
    """Return the ASGI application of a server.

    FastAPI needs about 0.1 ms more per request than a plain route. `/recommend` therefore has a plain route, which
    FastAPI only documents; FastAPI handles all other requests.
    """
    recommend = Route("/recommend", _observed(server, "/recommend", server.recommend), methods=["POST"])
    others = Mount("/", _create_api(server))
    others.path_regex = re.compile(r"^/(?P<path>[\s\S]*)$")  # that of Mount matches no line break
    app = Starlette(routes=[recommend, others], lifespan=server.lifespan)
    return app if server.token is not None else HostCheck(app, server.hosts)


def _create_api(server: Server) -> FastAPI:
    class ObservedRoute(APIRoute):
        """Route that records its requests in the metrics and answers invalid requests with `Error`."""

        def get_route_handler(self) -> RouteHandler:
            return _observed(server, self.path, super().get_route_handler())

    api = FastAPI(
        title="slmrec",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # FastAPI's own pages load their scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,  # those of Starlette repeat the header Host
        generate_unique_id_function=lambda route: route.name,
        exception_handlers={HTTPException: _http_exception_response},
    )
    api.router.route_class = ObservedRoute
    _add_pages(api)
    popular = _popular_ids(server)
    definitions = _add_endpoints(api, server, popular)
    document = api.openapi()  # FastAPI keeps this document until a route is added
    document["components"]["schemas"].update(definitions)
    (words,) = (each for each in document["paths"]["/items"]["get"]["parameters"] if each["name"] == "q")
    words["example"] = str(popular[0])
    return api


def _observed(server: Server, path: str, handler: RouteHandler) -> RouteHandler:
    async def handle(request: Request) -> Response:
        started = time.perf_counter()
        try:
            response = await handler(request)
        except RequestError as error:
            response = error_response(error)
        except RequestValidationError as error:  # a query parameter is invalid
            response = error_response(InvalidRequestError(_describe_parameters(error)))
        server.metrics.observe_request(path, response.status_code, time.perf_counter() - started)
        return response

    return handle


def _add_endpoints(api: FastAPI, server: Server, popular: list[Any]) -> dict[str, Any]:
    """Add the endpoints for programs.

    The handlers of POST requests read the body themselves, within the limits, so FastAPI cannot derive its schema.

    Returns:
        Schemas that the request bodies refer to.
    """
    protected: list[Any] = []
    unauthorized: tuple[type[RequestError], ...] = ()
    if server.token is not None:
        bearer = HTTPBearer(scheme_name="token", auto_error=False)  # only declares the scheme
        protected = [Depends(bearer), Depends(server.check_token)]
        unauthorized = (UnauthorizedError,)

    def add(
        path: str,
        handler: Callable[..., Any],
        answer: Any,
        *errors: type[RequestError],
        parameters: Sequence[str] = (),
        repeatable: Sequence[str] = (),
        dependencies: Sequence[Any] = (),
        **options: Any,
    ) -> None:
        responses = _error_responses(*errors, InvalidRequestError)
        dependencies = [*dependencies, Depends(_parameter_check(parameters, repeatable))]
        api.add_api_route(
            path, handler, response_model=answer, responses=responses, dependencies=dependencies, **options
        )

    bodies, definitions = TypeAdapter.json_schemas(
        [("query", "validation", server.request_adapter), ("reload", "validation", TypeAdapter(ReloadRequest))],
        ref_template="#/components/schemas/{model}",
    )
    unit = server.engines[server.default].active.ranker.model.timestamp_unit
    examples = query_examples(popular, unit)
    query = {
        "parameters": [_model_parameter(server)],
        **_request_body(bodies["query", "validation"], examples),
        "description": _recommend_description(server, examples["One user"]["value"]),
    }
    empty = _request_body(bodies["reload", "validation"], {"Reload": {"value": {}}})
    body_errors = (*unauthorized, *_BODY_ERRORS)
    post: dict[str, Any] = {"methods": ["POST"], "openapi_extra": query, "dependencies": protected}
    get: dict[str, Any] = {"dependencies": protected}
    add("/recommend", server.recommend, Answer | Answers, *body_errors, OverloadedError, **post)
    add("/items", server.items, Items, *unauthorized, parameters=("q", "limit"), repeatable=("id",), **get)
    add("/examples", server.example_users, ExampleUsers, *unauthorized, **get)
    add("/model", server.model, Models, *unauthorized, **get)
    post |= {"openapi_extra": empty}
    add("/reload", server.reload, ReloadResult, *body_errors, ConflictError, **post)
    delete: dict[str, Any] = {"methods": ["DELETE"], "dependencies": protected}
    add("/sessions/{session_id:any}", server.drop_session, DroppedSession, *unauthorized, **delete)
    add("/metrics", server.prometheus, None, *unauthorized, response_class=PlainTextResponse, **get)
    add("/health", server.health, Status)
    add("/ready", server.ready, Status, OverloadedError)
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def _parameter_check(
    allowed: Sequence[str], repeatable: Sequence[str]
) -> Callable[[Request], Coroutine[Any, Any, None]]:
    async def check(request: Request) -> None:
        check_parameters(request, allowed, repeatable)

    return check


def _popular_ids(server: Server) -> list[Any]:
    """Return the ids of the four most popular items, for examples that can be tried."""
    active = server.engines[server.default].active
    return [active.catalogue.described(item)["item_id"] for item in active.titles.find("", 4)]


def _model_parameter(server: Server) -> dict[str, Any]:
    schema = {"enum": list(server.models), "default": server.default}
    return {"name": "model", "in": "query", "description": "the model that answers", "schema": schema}


def _recommend_description(server: Server, body: dict[str, Any]) -> str:
    """Return a description with examples to copy, which work as they are."""
    token = " -H 'Authorization: Bearer TOKEN'" if server.token is not None else ""
    in_python = ', headers={"Authorization": "Bearer TOKEN"}' if server.token is not None else ""
    text = json.dumps(body, ensure_ascii=False)
    in_shell = text.replace("'", "'\\''")
    return (
        f"{server.recommend.__doc__}\n\n```sh\n"
        f"curl{token} -H 'Content-Type: application/json' -d '{in_shell}' {server.url}/recommend\n```\n\n"
        f"```python\nimport requests\n\nbody = {body!r}\n"
        f'answer = requests.post("{server.url}/recommend", json=body{in_python})\n'
        'for item in answer.json()["items"]:\n    print(item["rank"], item["item_id"], item["title"])\n```'
    )


def _request_body(schema: dict[str, Any], examples: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


def _error_responses(*errors: type[RequestError]) -> dict[int | str, dict[str, Any]]:
    return {error.status: {"model": Error, "description": error.__doc__} for error in errors}


def _add_pages(api: FastAPI) -> None:
    """Add the demo page and the documentation page, which load nothing from other hosts."""
    demo = (files("slmrec.serving") / "page.html").read_text(encoding="utf-8")
    docs = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="slmrec: HTTP interface",
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{_ASSETS}/favicon.png",
        swagger_ui_parameters={
            "validatorUrl": None,  # the default is a service on the internet
            "tryItOutEnabled": True,
            "requestSnippetsEnabled": True,
            "displayRequestDuration": True,
            "defaultModelsExpandDepth": 0,
        },
    )
    for path, content, assets in (("/", demo, ""), ("/docs", bytes(docs.body).decode(), " 'self'")):
        page = HTMLResponse(content, headers=_page_headers(assets))
        api.add_api_route(path, _constant(page), include_in_schema=False)
    api.mount(_ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]))


def _constant(response: Response) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def handle() -> Response:
        return response

    return handle


def _page_headers(assets: str) -> dict[str, str]:
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'{assets}; script-src 'unsafe-inline'{assets}; "
        f"connect-src 'self'; img-src data:{assets}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
    }


def _describe_parameters(error: RequestValidationError) -> str:
    """Return the faults without the first part of their location, which is `query`, but with the invalid values."""
    faults = [
        fault | {"loc": fault["loc"][1:], "msg": f"{fault['msg']}, got {str(fault['input'])[:50]!r}"}
        for fault in error.errors()
    ]
    return describe_faults(faults)


async def _http_exception_response(request: Request, error: HTTPException) -> Response:
    """Answer an unknown path (404), a path with a slash too many (307) or a wrong method (405)."""
    name = request.url.path.rstrip("/")
    if error.status_code == 404 and name != request.url.path and name in {route.path for route in request.app.routes}:
        query = f"?{request.url.query}" if request.url.query else ""
        return Response(status_code=307, headers={"Location": name + query})
    content = to_json({"error": one_line(f"{request.method} {request.url.path}: {error.detail}")})
    return Response(content, error.status_code, error.headers, "application/json")
