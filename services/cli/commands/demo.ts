import { writeFileSync } from "node:fs";
import { wholeNumber } from "../arguments.js";
import type { DemoOptions } from "../demo/demo.js";
import { summary } from "../demo/display.js";
import { DEMO } from "../demo/settings.js";
import { writeJson } from "../io.js";
import type { CommandGroup } from "../shell.js";

/** Presidents who have given an address. */
const MOST_DEVICES = 40;

interface DemoFlags extends DemoOptions {
  readonly json?: string;
}

export const demoCommands: CommandGroup = (program, shell) => {
  program
    .command("demo")
    .description("train a language model on this machine by a fleet of agents with private text, and judge it")
    .option("--devices <n>", "agent processes", wholeNumber(1, MOST_DEVICES), 8)
    .option("--rounds <n>", "rounds", wholeNumber(1, 1000), DEMO.rounds)
    .option("--seed <n>", "seed of everything random", wholeNumber(0, 2 ** 32 - 1), 1)
    .option("--json <file>", "write all figures to a file; - is standard output")
    .option("--checkpoint <dir>", "folder for the trained model", ".shoal/demo/checkpoint")
    .option("--keep", "keep the folders of control plane and devices", false)
    .action(async (options: DemoFlags) => {
      const { runDemo } = await import("../demo/demo.js");
      const report = await runDemo(shell, options);
      if (options.json === "-") {
        writeJson(shell.io, report);
        return;
      }
      if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(report, null, 2)}\n`);
      shell.io.out(summary(report));
    });
};
