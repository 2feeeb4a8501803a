"""Whether a coordinator's container does its work, for its health check: exit status 0, or 1 and why.

The SuperLink answers over TLS, under the name and by the authority that the federation knows, a question
to its Control API: how the hospitals are. In the SuperLink's own container that is its health, in the
SuperExec's that it can reach the one whose runs it conducts. Light to import: asked every half minute.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from pathlib import Path

import yaml

_HOME_VARIABLE = "CONSILIUM_COORDINATOR"  # as server_app/home.py has it


def unhealthy(home: Path) -> str | None:
    """What is wrong; None: nothing."""
    try:
        federation = yaml.safe_load((home / "federation.yaml").read_text())
        host, port = federation["listen"], federation.get("listen_port") or federation["port"]
        context = ssl.create_default_context(cafile=str(home / "ca.crt"))
    except (OSError, KeyError, TypeError, AttributeError) as error:
        return f"{home} cannot be read: {error}"
    asked = http.client.HTTPSConnection(host, port, timeout=8, context=context)
    try:
        # an empty ListNodesRequest is no bytes
        asked.request(
            "POST", "/v1/control/list-nodes", headers={"Content-Type": "application/protobuf"}
        )
        status = asked.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"the SuperLink at {host}:{port} does not answer: {error}"
    finally:
        asked.close()
    return None if status == 200 else f"the SuperLink at {host}:{port} answers with status {status}"


if __name__ == "__main__":
    wrong = unhealthy(Path(os.environ.get(_HOME_VARIABLE, "coordinator")))
    sys.exit(wrong and f"unhealthy: {wrong}")
