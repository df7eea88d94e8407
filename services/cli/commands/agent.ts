import { Option } from "commander";
import { hostAndPort, keyValue, realNumber, wholeNumber } from "../arguments.js";
import { CliError, EXIT, type ExitCode } from "../exit.js";
import type { CommandGroup, Shell } from "../shell.js";
import { findProgram } from "../supervisor/binaries.js";
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
  readonly outboxMaxBytes?: number;
  readonly leastFreeBytes?: number;
  readonly jsonLog?: boolean;
  readonly via?: string;
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
      outboxMaxBytes: flags.outboxMaxBytes,
      leastFreeBytes: flags.leastFreeBytes,
      jsonLog: flags.jsonLog,
      via: flags.via,
    },
    shell.signal,
  );
  // The agent has its own codes, 77 among them: this device is not accepted.
  shell.exit(code as ExitCode);
}

interface GatewayFlags extends Pick<
  AgentFlags,
  "join" | "name" | "state" | "outboxMaxBytes" | "leastFreeBytes" | "jsonLog" | "via"
> {
  readonly listen: { host: string; port: number };
  readonly cacheBytes?: number;
  readonly logBytes?: number;
}

async function gateway(shell: Shell, flags: GatewayFlags): Promise<void> {
  const natsServer = findProgram("nats-server", "nats-server", shell.io.env["PATH"] ?? "");
  const { runGateway } = await import("#agent/main.js");
  const code = await runGateway(
    {
      joinToken: await joinToken(shell, flags.join),
      name: flags.name,
      stateDir: flags.state,
      ...flags.listen,
      natsServer,
      cacheBytes: flags.cacheBytes,
      logBytes: flags.logBytes,
      outboxMaxBytes: flags.outboxMaxBytes,
      leastFreeBytes: flags.leastFreeBytes,
      jsonLog: flags.jsonLog,
      via: flags.via,
    },
    shell.signal,
  );
  shell.exit(code as ExitCode);
}

const outboxMaxBytes = (updates: string): Option =>
  new Option(
    "--outbox-max-bytes <n>",
    `most bytes of ${updates} and of what jobs keep between rounds (default: 8 GiB)`,
  ).argParser(wholeNumber(1, Number.MAX_SAFE_INTEGER));

const leastFreeBytes = (): Option =>
  new Option(
    "--least-free-bytes <n>",
    "bytes of the disk that stay free (default: 5 % of it, at most 256 MiB)",
  ).argParser(wholeNumber(0, Number.MAX_SAFE_INTEGER));

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
    .addOption(outboxMaxBytes("updates"))
    .addOption(leastFreeBytes())
    .option("--label <k=v>", "label of the device (repeatable)", keyValue)
    .option("--via <host:port>", "connect to the gateway of this device's site instead of the control plane")
    .option("--json-log", "one JSON object a log line")
    .option("--calibrate", "only measure this machine and predict how fast it would train; joins nothing")
    .option("--model <config...>", "with --calibrate: config.json files or folders to predict for")
    .option("--json", "with --calibrate: write JSON for programs")
    .action((flags: AgentFlags) => (flags.calibrate === true ? calibrate(shell, flags) : agent(shell, flags)));
  program
    .command("gateway")
    .description("run a site's gateway: folds the updates of its devices into one")
    .requiredOption("--listen <host:port>", "where the site's devices connect, with `shoal agent --via`", hostAndPort)
    .option("--join <token>", "join token for the first start, of `shoal token issue --site NAME --gateway`")
    .option("--name <name>", "wished device name (default: the host's name)")
    .option("--state-dir, --state <dir>", "identity, cache, the site's log and unsent updates", ".shoal-gateway")
    .option("--cache-bytes <n>", "most bytes of cached models", wholeNumber(1, Number.MAX_SAFE_INTEGER))
    .option("--log-bytes <n>", "most bytes of the site's log", wholeNumber(1, Number.MAX_SAFE_INTEGER))
    .addOption(outboxMaxBytes("unsent updates"))
    .addOption(leastFreeBytes())
    .option("--via <host:port>", "connect here instead of where the fleet says")
    .option("--json-log", "one JSON object a log line")
    .action((flags: GatewayFlags) => gateway(shell, flags));
};
