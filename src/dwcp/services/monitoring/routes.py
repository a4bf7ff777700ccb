"""The monitoring service's own routes."""

from __future__ import annotations

from fastapi import FastAPI, Response

from dwcp.operations.clusters import CLUSTERS, judge, overall
from dwcp.runtime import http
from dwcp.services.monitoring.prober import Prober


def add_routes(app: FastAPI, prober: Prober, *, lag_warn: int) -> None:
    """Clusters are judged at each request, so that the ages of the answers are true."""

    async def get_cluster(name: str) -> Response:
        clusters = judge(prober.probes(), lag_warn=lag_warn)
        if name == "all":
            return http.json_response({"verdict": overall(clusters), "clusters": clusters})
        for cluster in clusters:
            if cluster.name == name:
                return http.json_response(cluster)
        raise http.Refusal(
            404, "not_found", f"no cluster is named {name!r}; there are {', '.join(CLUSTERS)}, all"
        )

    app.add_api_route("/api/clusters/{name}/health", get_cluster, methods=["GET"], response_model=None)
