// Reads a RequestTokenRequest in hex, checks it, and writes it again. Imports the description of each service, from which
// a transport such as Connect makes its client.
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { ApprovalService } from "./dipylon/v1/approval_pb.js";
import { GovernanceService } from "./dipylon/v1/governance_pb.js";
import { RequestTokenRequestSchema, TaskService } from "./dipylon/v1/task_pb.js";
import { TokenService } from "./dipylon/v1/token_pb.js";

declare const process: { argv: string[] };
declare const console: { log(line: string): void };

const services = [TaskService, TokenService, ApprovalService, GovernanceService];

const bytes = Uint8Array.from(process.argv[2].match(/../g) ?? [], (byte) => parseInt(byte, 16));
const request = fromBinary(RequestTokenRequestSchema, bytes);
const value = request.action?.parameters[0].value?.kind;
const parameter = value?.case === "intValue" ? value.value : undefined;
const again = Array.from(toBinary(RequestTokenRequestSchema, request), (byte) => byte.toString(16).padStart(2, "0"));
console.log([services.length, request.action?.target?.id, parameter, again.join("")].join(" "));
