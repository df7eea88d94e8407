import { keyValue, realNumber, wholeNumber } from "../arguments.js";
import { CliError, EXIT, type ExitCode } from "../exit.js";
import type { CommandGroup, Shell } from "../shell.js";
import { calibrate, type CalibrateFlags } from "./calibrate.js";

interface AgentFlags extends CalibrateFlags {
  readonly calibrate?: boolean;
  readonly join?: string;
  readonly name?: string;
  readonly dataset?: Record<string, string>;
  readonly state: string;
  readonly provider?: string;
  readonly throttle?: number;
  readonly policy?: string;
  readonly label?: Record<string, string>;
  readonly jsonLog?: boolean;
}

const present = (text = ""): string | undefined => (text.trim() === "" ? undefined : text);

/** The token itself, from the option, from standard input ("-"), or from SHOAL_JOIN_TOKEN. */
async function joinToken({ io }: Shell, option: string | undefined): Promise<string | undefined> {
  if (option !== "-") return option ?? present(io.env["SHOAL_JOIN_TOKEN"]);
  const token = (await io.readStdin()).trim();
  if (token === "") throw new CliError("--join - found no token on standard input", EXIT.usage);
  return token;
}

async function agent(shell: Shell, flags: AgentFlags): Promise<void> {
  // Loaded only here: the tensor runtime behind it is heavy, and no other command needs it.
  const { runAgent } = await import("#agent/main.js");
  const code = await runAgent(
    {
      joinToken: await joinToken(shell, flags.join),
      name: flags.name,
      dataset: flags.dataset ?? {},
      stateDir: flags.state,
      threads: flags.threads,
      provider: flags.provider,
      throttle: flags.throttle,
      policyFile: flags.policy,
      labels: flags.label,
      jsonLog: flags.jsonLog,
    },
    shell.signal,
  );
  // The agent has its own codes, 77 among them: this device is not accepted.
  shell.exit(code as ExitCode);
}

export const agentCommands: CommandGroup = (program, shell) => {
  program
    .command("agent")
    .description("run a device: trains on text that stays here")
    .option("--join <token>", "join token for the first start; - reads standard input (default: $SHOAL_JOIN_TOKEN)")
    .option("--name <name>", "wished device name (default: the host's name)")
    .option("--dataset <name=folder>", "offer the .txt and .jsonl files of a folder (repeatable)", keyValue)
    .option("--state-dir, --state <dir>", "identity, cache and unsent updates", ".shoal-agent")
    .option("--threads <n>", "threads for training", wholeNumber(1, 256))
    .option("--provider <name>", "what computes: cpu, cuda, coreml, dml, webgpu or wasm (default: cpu)")
    .option("--throttle <share>", "share of the full speed, up to 1", realNumber(0, 1))
    .option("--policy <file>", "YAML with what the data may be used for")
    .option("--label <k=v>", "label of the device (repeatable)", keyValue)
    .option("--json-log", "one JSON object a log line")
    .option("--calibrate", "only measure this machine and predict how fast it would train; joins nothing")
    .option("--model <config...>", "with --calibrate: config.json files or folders to predict for")
    .option("--json", "with --calibrate: write JSON for programs")
    .action((flags: AgentFlags) => (flags.calibrate === true ? calibrate(shell, flags) : agent(shell, flags)));
};
