import { CommanderError } from "commander";
import { fromServiceError } from "#common/adapters/grpc/errors.js";
import { isServiceError } from "./calls.js";
import { CliError, EXIT, exitCodeOfStatus, type ExitCode } from "./exit.js";
import { printable } from "./output/table.js";

/** A failure as it is told to people, and its exit code. Undefined message: it has been told already. */
export function explainFailure(error: unknown): { message: string | undefined; exitCode: ExitCode } {
  if (error instanceof CommanderError) {
    return { message: undefined, exitCode: error.exitCode === 0 ? EXIT.ok : EXIT.usage };
  }
  if (error instanceof CliError) return { message: error.message, exitCode: error.exitCode };
  if (isServiceError(error)) {
    const { violations } = fromServiceError(error);
    const lines = violations.length === 0 ? [error.details] : violations.map((v) => `${v.field}: ${v.description}`);
    return { message: lines.map(printable).join("\n  "), exitCode: exitCodeOfStatus(error.code) };
  }
  return { message: error instanceof Error ? error.message : String(error), exitCode: EXIT.failed };
}
