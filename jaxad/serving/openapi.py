"""The description of the interface in OpenAPI 3.1."""

from typing import Any

import jaxad
from jaxad.serving.options import HEATMAPS

_NUMBER_OR_NULL = {"type": ["number", "null"]}
_REGION = {
    "type": "object",
    "description": "Pixels above the threshold for pixels that touch each other; rows and columns count from 0.",
    "properties": {
        "box": {"type": "array", "items": {"type": "integer"}, "description": "top, left, bottom, right"},
        "area": {"type": "integer", "description": "pixels"},
        "polygon": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}},
                    "description": "the outer contour as (column, row)"},
        "peak_score": {"type": "number"},
        "mean_score": {"type": "number"},
        "peak": {"type": "array", "items": {"type": "integer"}, "description": "row, column"},
    },
}  # fmt: skip
_PREDICTION = {
    "type": "object",
    "description": "What a line of predictions.jsonl of jaxad.predict says of an image.",
    "properties": {
        "path": {"type": "string", "description": "the name of the file, as it was sent; without folders of Windows"},
        "score": _NUMBER_OR_NULL,
        "percentile": _NUMBER_OR_NULL,
        "threshold": _NUMBER_OR_NULL,
        "decision": {"enum": ["good", "defective", "n/a", "unreadable"]},
        "pixel_threshold": _NUMBER_OR_NULL,
        "regions": {"type": ["array", "null"], "items": _REGION},
        "mask": {"type": "null"},
        "reason": {"type": ["string", "null"], "description": "why the image cannot be read"},
        "height": {"type": "integer", "description": "pixels; with a heatmap alone"},
        "width": {"type": "integer", "description": "pixels; with a heatmap alone"},
        "highest": {"type": "number", "description": "the highest value of the map; with a heatmap alone"},
        "heatmap": {
            "type": "object",
            "description": "Data URIs: overlay, or picture (grey) and layer (color and opacity).",
            "additionalProperties": {"type": "string"},
        },
    },
}  # fmt: skip
_ANSWER = {
    "type": "object",
    "properties": {
        "detector": {"type": "string"},
        "predictions": {"type": "array", "items": _PREDICTION, "description": "in the order of the files"},
    },
}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_REFUSED = {
    "400": "The query or the form is wrong.",
    "404": "There is no such detector.",
    "408": "The request did not come in time.",
    "413": "The upload is too large.",
    "415": "The body is no form.",
    "422": "No image can be read; predictions say why for each.",
    "500": "The server has failed.",
    "503": "The server has too much to do; Retry-After says when to come again.",
}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _got(summary: str, kind: str = "application/json") -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": {"description": summary, "content": {kind: {}}}}}}


def document(names: list[str]) -> dict[str, Any]:
    """The OpenAPI document of a server with detectors of these names."""
    files = {"type": "object", "properties": {"image": {"type": "array", "items": {"type": "string",
             "format": "binary"}}}}  # fmt: skip
    options = {
        "detector": ({"enum": names, "default": names[0]}, "which detector is asked"),
        "heatmap": ({"enum": list(HEATMAPS), "default": HEATMAPS[0]}, "which pictures come with the answer"),
        "pixel_threshold": ({"type": "number"}, "a threshold for pixels in place of the detector's own"),
    }
    post = {
        "summary": "Scores images.",
        "parameters": [
            {"name": name, "in": "query", "schema": schema, "description": told}
            for name, (schema, told) in options.items()
        ],
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": files}}},
        "responses": {"200": _json("What the detector says of each image.", _ANSWER)}
        | {status: _json(told, _ERROR) for status, told in _REFUSED.items()},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "jaxad", "version": jaxad.__version__},
        "paths": {
            "/": _got("The page on which a detector is tried.", "text/html"),
            "/predict": {"post": post},
            "/detectors": _got("The detectors, with their thresholds."),
            "/health": _got("That the server works."),
            "/metrics": _got("Counts of requests and images, for Prometheus.", "text/plain"),
            "/openapi.json": _got("This document."),
        },
    }
