import { readFileSync } from "node:fs";
import { writeJson } from "../io.js";
import type { CommandGroup } from "../shell.js";

/** The version in package.json, which lies three folders above the compiled command. */
export function packageVersion(): string {
  const text = readFileSync(new URL("../../../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}

export const versionCommands: CommandGroup = (program, shell) => {
  program
    .command("version")
    .description("version of shoal and of the runtime")
    .option("--json", "write JSON for programs")
    .action((options: { json?: boolean }) => {
      const facts = {
        shoal: packageVersion(),
        node: process.versions.node,
        platform: `${process.platform}/${process.arch}`,
      };
      if (options.json === true) writeJson(shell.io, facts);
      else shell.io.out(`shoal ${facts.shoal} (node ${facts.node}, ${facts.platform})\n`);
    });
};
