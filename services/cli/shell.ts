import type { Command } from "commander";
import { connectClients, type Clients } from "./calls.js";
import { loadContext, type Context } from "./context.js";
import type { ExitCode } from "./exit.js";
import type { Io } from "./io.js";

/** What commands get beside their arguments. */
export interface Shell {
  readonly io: Io;
  /** Aborts at SIGINT or SIGTERM. */
  readonly signal: AbortSignal;
  /** Sets the exit code of a command that did not throw. */
  exit(code: ExitCode): void;
}

/** Options that commands of the control plane share. */
export interface RemoteOptions {
  readonly context?: string;
  readonly json?: boolean;
}

/** Adds one group of commands. */
export type CommandGroup = (program: Command, shell: Shell) => void;

/** Adds --context. */
export function takesContext(command: Command): Command {
  return command.option(
    "--context <place>",
    "directory or file of the control plane (default: $SHOAL_CONTEXT, ./.shoal)",
  );
}

/** Adds --context and --json. */
export function takesRemote(command: Command): Command {
  return takesContext(command).option("--json", "write JSON for programs");
}

export function contextOf(shell: Shell, options: RemoteOptions): Context {
  return loadContext(options.context, shell.io.env["SHOAL_CONTEXT"]);
}

/** Runs with clients that are closed afterwards. */
export async function withClients<T>(
  shell: Shell,
  options: RemoteOptions,
  run: (clients: Clients) => Promise<T>,
): Promise<T> {
  const clients = connectClients(contextOf(shell, options));
  try {
    return await run(clients);
  } finally {
    clients.close();
  }
}
