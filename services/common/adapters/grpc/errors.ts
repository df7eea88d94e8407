import { BinaryReader, BinaryWriter } from "@bufbuild/protobuf/wire";
import { Metadata, status } from "@grpc/grpc-js";
import type { Violation } from "../../domain/resources.js";
import { codeOf, messageOf } from "../coded-error.js";

/** An answer other than OK. Thrown by handlers, rethrown by clients. */
export class GrpcError extends Error {
  constructor(
    /** gRPC status code. */
    readonly status: status,
    message: string,
    /** google.rpc.BadRequest field violations, if there are any. */
    readonly violations: readonly FieldViolation[] = [],
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = "GrpcError";
  }

  /** Name of the status, e.g. "NOT_FOUND". */
  get code(): string {
    return status[this.status];
  }
}

/** google.rpc.BadRequest.FieldViolation. */
export interface FieldViolation {
  field: string;
  description: string;
}

const DETAILS = "grpc-status-details-bin";
const BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest";

/** INVALID_ARGUMENT with one field violation each. */
export function invalidArgument(violations: readonly Violation[]): GrpcError {
  const fields = violations.map(({ field, value, description }) => ({
    field,
    description: value === "" ? description : `${description} (is ${value})`,
  }));
  const message = fields.map(({ field, description }) => `${field}: ${description}`).join("; ");
  return new GrpcError(status.INVALID_ARGUMENT, message, fields);
}

/** NOT_FOUND. */
export function notFound(kind: string, name: string): GrpcError {
  return new GrpcError(status.NOT_FOUND, `there is no ${kind} named ${JSON.stringify(name)}`);
}

/** FAILED_PRECONDITION: the request is right, the state is not; says what must change. */
export function failedPrecondition(message: string): GrpcError {
  return new GrpcError(status.FAILED_PRECONDITION, message);
}

/** Codes of failures that pass: the caller should try again. */
const PASSING = new Set(["TIMEOUT", "503", "CONNECTION_CLOSED", "DISCONNECT", "NO_RESPONDERS", "QUEUE_UNAVAILABLE"]);

/** What a handler threw as an answer: GrpcErrors as they are, outages as UNAVAILABLE, the rest as INTERNAL. */
export function toGrpcError(error: unknown): GrpcError {
  if (error instanceof GrpcError) return error;
  const code = codeOf(error) ?? "";
  if (PASSING.has(code))
    return new GrpcError(status.UNAVAILABLE, `storage is not available (${messageOf(error)}); try again`, [], {
      cause: error,
    });
  return new GrpcError(status.INTERNAL, "internal error; the service's log says more", [], { cause: error });
}

/** The error with trailing metadata as grpc-js takes it: field violations go into grpc-status-details-bin. */
export function toServiceError(error: GrpcError): { code: status; details: string; metadata: Metadata } {
  const metadata = new Metadata();
  if (error.violations.length > 0) metadata.set(DETAILS, Buffer.from(encodeStatus(error)));
  return { code: error.status, details: error.message, metadata };
}

/** What a call failed with, decoded; anything that is no gRPC failure becomes UNKNOWN. */
export function fromServiceError(error: unknown): GrpcError {
  if (error instanceof GrpcError) return error;
  if (!(error instanceof Error) || !("code" in error) || typeof error.code !== "number")
    return new GrpcError(status.UNKNOWN, messageOf(error), [], { cause: error });
  const details = "details" in error && typeof error.details === "string" ? error.details : error.message;
  const raw = "metadata" in error && error.metadata instanceof Metadata ? error.metadata.get(DETAILS)[0] : undefined;
  const violations = raw instanceof Uint8Array ? decodeViolations(raw) : [];
  return new GrpcError(statusOf(error.code), details, violations, { cause: error });
}

const STATUSES = new Map(
  Object.values(status)
    .filter((value): value is status => typeof value === "number")
    .map((value) => [value.toString(), value]),
);

function statusOf(code: number): status {
  return STATUSES.get(code.toString()) ?? status.UNKNOWN;
}

/** google.rpc.Status { code = 1, message = 2, details = 3 } holding one Any { type_url = 1, value = 2 } of a BadRequest. */
function encodeStatus(error: GrpcError): Uint8Array {
  const badRequest = new BinaryWriter();
  for (const { field, description } of error.violations)
    badRequest.uint32(10).fork().uint32(10).string(field).uint32(18).string(description).join();
  const writer = new BinaryWriter().uint32(8).int32(error.status).uint32(18).string(error.message);
  return writer.uint32(26).fork().uint32(10).string(BAD_REQUEST).uint32(18).bytes(badRequest.finish()).join().finish();
}

function decodeViolations(bytes: Uint8Array): FieldViolation[] {
  try {
    return fields(bytes)
      .filter(({ number }) => number === 3)
      .map(({ data }) => fields(data))
      .filter((any) => text(any, 1) === BAD_REQUEST)
      .flatMap((any) => any.filter(({ number }) => number === 2).flatMap(({ data }) => fields(data)))
      .map(({ data }) => fields(data))
      .map((violation) => ({ field: text(violation, 1), description: text(violation, 2) }));
  } catch {
    // Details are an extra; a damaged one does not hide the error itself.
    return [];
  }
}

/** A length-delimited field of a message. */
export interface RawField {
  number: number;
  data: Uint8Array;
}

/** The length-delimited fields of a message, in order; others are skipped. */
export function fields(bytes: Uint8Array): RawField[] {
  const reader = new BinaryReader(bytes);
  const found: RawField[] = [];
  while (reader.pos < reader.len) {
    const [number, wireType] = reader.tag();
    if ((wireType as number) === 2) found.push({ number, data: reader.bytes() });
    else reader.skip(wireType);
  }
  return found;
}

/** The first field of a number as text; empty if absent. */
export function text(of: readonly RawField[], number: number): string {
  const field = of.find((candidate) => candidate.number === number);
  return field === undefined ? "" : new TextDecoder().decode(field.data);
}
