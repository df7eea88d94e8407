import { status } from "@grpc/grpc-js";

/** Exit codes of `shoal`, after sysexits.h where it has one. */
export const EXIT = {
  ok: 0,
  /** The thing asked for did not succeed. */
  failed: 1,
  /** The command line cannot be understood. */
  usage: 64,
  /** A manifest, model or other input is not valid. */
  invalid: 65,
  /** The control plane, or a program that is needed, cannot be reached. */
  unavailable: 69,
  /** Trying again later may succeed. */
  temporary: 75,
} as const;

export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

/** A failure with a message for people and an exit code for programs. */
export class CliError extends Error {
  readonly exitCode: ExitCode;

  constructor(message: string, exitCode: ExitCode = EXIT.failed) {
    super(message);
    this.name = "CliError";
    this.exitCode = exitCode;
  }
}

const EXIT_OF_STATUS: ReadonlyMap<number, ExitCode> = new Map<number, ExitCode>([
  [status.OK, EXIT.ok],
  [status.INVALID_ARGUMENT, EXIT.invalid],
  [status.OUT_OF_RANGE, EXIT.invalid],
  [status.UNAVAILABLE, EXIT.unavailable],
  [status.DEADLINE_EXCEEDED, EXIT.temporary],
  [status.ABORTED, EXIT.temporary],
  [status.RESOURCE_EXHAUSTED, EXIT.temporary],
]);

/** Exit code for a gRPC status code. */
export function exitCodeOfStatus(code: number): ExitCode {
  return EXIT_OF_STATUS.get(code) ?? EXIT.failed;
}
