import { isResourceName } from "#common/domain/resources.js";
import { isProvider, PROVIDERS } from "./backend/providers.js";

/** How an agent is started. */
export interface AgentOptions {
  /** Text of a join token; needed until the state folder holds an identity. */
  readonly joinToken?: string | undefined;
  /** Wished device name; the host's name if absent. */
  readonly name?: string | undefined;
  /** Folder of each dataset by the name it is offered under. */
  readonly dataset: Readonly<Record<string, string>>;
  /** Identity, cache, outbox and calibration live here. */
  readonly stateDir: string;
  /** Threads of an operator; 1 if absent. */
  readonly threads?: number | undefined;
  /** What computes, one of PROVIDERS; "cpu" if absent. */
  readonly provider?: string | undefined;
  /** Share of the full speed, above 0 and at most 1; 1 if absent. */
  readonly throttle?: number | undefined;
  /** YAML file with the data policy; without one everything is allowed. */
  readonly policyFile?: string | undefined;
  readonly labels?: Readonly<Record<string, string>> | undefined;
  /** Bytes the cache of models may take; 4 GiB if absent. */
  readonly cacheBytes?: number | undefined;
  /** Bytes that updates and what jobs keep between rounds may take; 8 GiB if absent. */
  readonly outboxMaxBytes?: number | undefined;
  /** Bytes of the disk that stay free; 5 % of it and at most 256 MiB if absent. */
  readonly leastFreeBytes?: number | undefined;
  /** One JSON object a log line instead of plain text. */
  readonly jsonLog?: boolean | undefined;
  /** NATS server to connect to in place of those the fleet names: that of the site's gateway. */
  readonly via?: string | undefined;
}

/** How a site's gateway is started. */
export interface GatewayOptions extends Pick<
  AgentOptions,
  "joinToken" | "name" | "stateDir" | "cacheBytes" | "outboxMaxBytes" | "leastFreeBytes" | "jsonLog" | "via"
> {
  /** Where the members of the site connect. */
  readonly host: string;
  readonly port: number;
  /** Path of the nats-server program. */
  readonly natsServer: string;
  /** Most bytes of the site's log; what it has already if absent, else 16 GiB or what the disk has. */
  readonly logBytes?: number | undefined;
}

/** A wrong option: its name, its value and the remedy in one line. */
export type OptionProblem = string;

const LABEL = /^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$/;
const ADDRESS = /^([a-z]+:\/\/)?[^\s/]+\/?$/;
const MOST_THREADS = 256;

function problem(option: string, value: unknown, remedy: string): OptionProblem {
  return `${option} ${JSON.stringify(value)}: ${remedy}`;
}

/** What is wrong with the options, as far as it can be told without looking at the disk. */
export function checkOptions(options: AgentOptions): OptionProblem[] {
  const { name, dataset, stateDir, threads = 1, provider = "cpu", throttle = 1 } = options;
  const { labels = {}, cacheBytes = 1, outboxMaxBytes = 1, leastFreeBytes = 0, via = "nats://site" } = options;
  const problems: OptionProblem[] = [];
  if (stateDir === "") problems.push(problem("--state-dir", stateDir, "name a folder the agent may write to"));
  if (name !== undefined && !isResourceName(name)) {
    problems.push(problem("--name", name, "use at most 63 lower-case letters, digits and inner '-'"));
  }
  for (const [key, folder] of Object.entries(dataset)) {
    const fine = isResourceName(key) && folder !== "";
    if (!fine) problems.push(problem("--dataset", `${key}=${folder}`, "write NAME=FOLDER with a lower-case name"));
  }
  if (!Number.isInteger(threads) || threads < 1 || threads > MOST_THREADS) {
    problems.push(problem("--threads", threads, `give a whole number from 1 to ${MOST_THREADS}`));
  }
  if (!isProvider(provider)) problems.push(problem("--provider", provider, `use one of ${PROVIDERS.join(", ")}`));
  if (!(throttle > 0 && throttle <= 1)) {
    problems.push(problem("--throttle", throttle, "give a share of the full speed above 0 and at most 1, e.g. 0.5"));
  }
  if (!(cacheBytes > 0)) problems.push(problem("--cache-bytes", cacheBytes, "give a number of bytes above 0"));
  if (!(outboxMaxBytes > 0))
    problems.push(problem("--outbox-max-bytes", outboxMaxBytes, "give a number of bytes above 0"));
  if (!(leastFreeBytes >= 0))
    problems.push(problem("--least-free-bytes", leastFreeBytes, "give a number of bytes from 0"));
  if (!ADDRESS.test(via)) problems.push(problem("--via", via, "write the gateway's HOST:PORT or nats://HOST:PORT"));
  for (const [key, value] of Object.entries(labels)) {
    const fine = LABEL.test(key) && (value === "" || LABEL.test(value));
    if (!fine)
      problems.push(problem("--label", `${key}=${value}`, "write KEY=VALUE of letters, digits, '.', '_' and '-'"));
  }
  return problems;
}

/** A device name from a host name: lower case, other characters as '-'. */
export function nameFromHost(host: string): string {
  const name = host
    .toLowerCase()
    .replace(/[^a-z0-9-]+/g, "-")
    .slice(0, 63)
    .replace(/^-+|-+$/g, "");
  return name === "" ? "device" : name;
}
