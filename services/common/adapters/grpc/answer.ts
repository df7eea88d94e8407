import { status } from "@grpc/grpc-js";
import type { Answer } from "../../domain/answer.js";
import { GrpcError, invalidArgument } from "./errors.js";

/** The value of an answer; a refusal is thrown as the gRPC error it stands for. */
export function valueOf<T>(answer: Answer<T>): T {
  if (answer.ok) return answer.value;
  const { refusal } = answer;
  if (refusal.code === "INVALID_ARGUMENT") throw invalidArgument(refusal.violations);
  throw new GrpcError(status[refusal.code], refusal.message);
}
