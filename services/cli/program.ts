import { Command } from "commander";
import { agentCommands } from "./commands/agent.js";
import { applyCommands } from "./commands/apply.js";
import { completionCommands } from "./commands/completion.js";
import { demoCommands } from "./commands/demo.js";
import { describeCommands } from "./commands/describe.js";
import { evalCommands } from "./commands/eval.js";
import { eventCommands } from "./commands/events.js";
import { generateCommands } from "./commands/generate.js";
import { getCommands } from "./commands/get.js";
import { keysCommands } from "./commands/keys.js";
import { lineageCommands } from "./commands/lineage.js";
import { modelCommands } from "./commands/model.js";
import { steerCommands } from "./commands/steer.js";
import { tokenCommands } from "./commands/token.js";
import { topCommands } from "./commands/top.js";
import { upCommands } from "./commands/up.js";
import { versionCommands } from "./commands/version.js";
import { watchCommands } from "./commands/watch.js";
import { EXIT, type ExitCode } from "./exit.js";
import { explainFailure } from "./failures.js";
import type { Io } from "./io.js";
import type { CommandGroup } from "./shell.js";

const GROUPS: readonly CommandGroup[] = [
  upCommands,
  demoCommands,
  agentCommands,
  tokenCommands,
  applyCommands,
  getCommands,
  describeCommands,
  watchCommands,
  topCommands,
  eventCommands,
  steerCommands,
  modelCommands,
  generateCommands,
  evalCommands,
  lineageCommands,
  keysCommands,
  completionCommands,
  versionCommands,
];

const EXIT_HELP = `
Exit codes: 0 done, 1 failed, 64 wrong usage, 65 invalid input, 69 unavailable, 75 try again later.`;

function quietExit(command: Command, io: Io): void {
  command.exitOverride().configureOutput({ writeOut: (text) => io.out(text), writeErr: (text) => io.err(text) });
  for (const sub of command.commands) quietExit(sub, io);
}

/**
 * Runs one command line.
 * @param args without the program's name
 * @param signal aborts what runs
 */
export async function runProgram(args: readonly string[], io: Io, signal: AbortSignal): Promise<ExitCode> {
  let exitCode: ExitCode = EXIT.ok;
  const program = new Command("shoal")
    .description("train language models on a fleet of small devices whose data never leaves them")
    .addHelpText("after", EXIT_HELP)
    .showHelpAfterError("(--help shows what there is)");
  const shell = { io, signal, exit: (code: ExitCode) => void (exitCode = code) };
  for (const group of GROUPS) group(program, shell);
  quietExit(program, io);
  try {
    await program.parseAsync([...args], { from: "user" });
    return exitCode;
  } catch (error) {
    const failure = explainFailure(error);
    if (failure.message !== undefined) io.err(`shoal: ${failure.message}\n`);
    return failure.exitCode;
  }
}
