"""Health checks for the containers. The exit status is 0 if the service answers, 1 otherwise.

health.py https HOST:PORT CA_FILE    GET /health of a SuperLink, a SuperNode or the proxy
health.py grpc HOST:PORT             gRPC health service of a SuperExec
"""

import ssl
import sys
import urllib.request


def https(address: str, ca_file: str) -> bool:
    """Tell whether a SuperLink, a SuperNode or the proxy answers with a certificate that this authority has signed."""
    context = ssl.create_default_context(cafile=ca_file)
    with urllib.request.urlopen(f"https://{address}/health", timeout=5, context=context) as answer:
        return answer.status in (200, 204)


def grpc(address: str) -> bool:
    """Tell whether a SuperExec reports that it is serving."""
    # Imported here, because the proxy's image has no grpc and only needs the other check.
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    check = {"https": https, "grpc": grpc}[sys.argv[1]]
    sys.exit(0 if check(*sys.argv[2:]) else 1)
