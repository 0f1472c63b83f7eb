"""Reads a RequestTokenRequest in hex, checks it, and writes it again. Imports the client of each service."""

import sys

from dipylon.v1 import approval_pb2_grpc, governance_pb2_grpc, task_pb2, task_pb2_grpc, token_pb2_grpc

CLIENTS = [
    task_pb2_grpc.TaskServiceStub,
    token_pb2_grpc.TokenServiceStub,
    approval_pb2_grpc.ApprovalServiceStub,
    governance_pb2_grpc.GovernanceServiceStub,
]

request = task_pb2.RequestTokenRequest.FromString(bytes.fromhex(sys.argv[1]))
parameter = request.action.parameters[0].value.int_value
again = request.SerializeToString(deterministic=True).hex()
print(len(CLIENTS), request.action.target.id, parameter, again)
