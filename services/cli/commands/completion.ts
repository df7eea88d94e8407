import { Argument, type Command } from "commander";
import { completionScript, type Shells, SHELLS } from "../completion.js";
import type { CommandGroup } from "../shell.js";
import { commandTree } from "../completion.js";

const rootOf = (command: Command): Command => (command.parent === null ? command : rootOf(command.parent));

export const completionCommands: CommandGroup = (program, shell) => {
  program
    .command("completion")
    .description("shell completion; e.g. source <(shoal completion bash)")
    .addArgument(new Argument("<shell>").choices([...SHELLS]))
    .action((name: Shells, _options: object, command: Command) => {
      shell.io.out(completionScript(name, commandTree(rootOf(command))));
    });
};
