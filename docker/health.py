"""Health checks of the containers: exit status 0 if the service answers.

health.py https HOST:PORT CA_FILE    GET /health of a SuperLink, a SuperNode or the proxy
health.py grpc HOST:PORT             gRPC health service of a SuperExec
"""

import ssl
import sys
import urllib.request


def https(address: str, ca_file: str) -> bool:
    """Whether a SuperLink, SuperNode or proxy answers, with a certificate of this authority."""
    context = ssl.create_default_context(cafile=ca_file)
    with urllib.request.urlopen(f"https://{address}/health", timeout=5, context=context) as answer:
        return answer.status in (200, 204)


def grpc(address: str) -> bool:
    """Whether a SuperExec says that it serves."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    check = {"https": https, "grpc": grpc}[sys.argv[1]]
    sys.exit(0 if check(*sys.argv[2:]) else 1)
