#!/usr/bin/env node
import { realpathSync } from "node:fs";
import { hostname } from "node:os";
import { fileURLToPath } from "node:url";
import { CodedError, codeOf, messageOf } from "#common/adapters/coded-error.js";
import { JsonLog } from "#common/adapters/json-log.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { DataPolicy } from "#proto/shoal/v1/device.js";
import type { Log } from "#common/ports/log.js";
import type { JoinBundle } from "#proto/shoal/v1/device_wire.js";
import { parseArguments, USAGE } from "./arguments.js";
import { openBackend } from "./backend/open.js";
import { isProvider } from "./backend/providers.js";
import { type DeviceReport, referenceModels, reportDevice, type ReportedModel } from "./device-report.js";
import { isWritable, nodeDisk } from "./disk.js";
import { checkOptions, nameFromHost, type AgentOptions, type GatewayOptions, type OptionProblem } from "./options.js";
import { parsePolicy } from "./policy-file.js";
import { assembleAgent, measureFacts, type Base } from "./runtime/assemble.js";
import { claimFolder, type Claim } from "./runtime/claim.js";
import { AgentLoop, type Exit } from "./runtime/loop.js";
import { runSite } from "./runtime/gateway.js";
import { establishIdentity, runAs } from "./runtime/membership.js";
import { TextLog } from "./runtime/text-log.js";
import { EXIT_REJECTED } from "./step.js";
import type { Identity } from "./transport/identity.js";
import { parseJoinToken } from "./transport/join-token.js";
import { connectControlPlane } from "./transport/nats-control-plane.js";

export type { DeviceReport, ReportedModel } from "./device-report.js";
export type { AgentOptions, GatewayOptions } from "./options.js";

/** Exit code of wrong options (EX_USAGE). */
export const EXIT_USAGE = 64;
const EXIT_FAILED = 1;
const REJECTED = new Set(["CREDENTIAL_REFUSED", "JOIN_REFUSED"]);

interface Inputs {
  policy: DataPolicy;
  bundle: JoinBundle | undefined;
  problems: OptionProblem[];
}

async function readPolicy(path: string): Promise<{ policy: DataPolicy } | { problem: OptionProblem }> {
  const bytes = await nodeDisk.read(path);
  if (bytes === undefined) return { problem: `--policy "${path}": the file does not exist; correct the path` };
  const parsed = parsePolicy(new TextDecoder().decode(bytes));
  return parsed.ok ? { policy: parsed.policy } : { problem: `--policy "${path}": ${parsed.problems.join("; ")}` };
}

/** Reads what the options point at, before anything is started. */
async function readInputs(options: AgentOptions): Promise<Inputs> {
  const inputs: Inputs = { policy: DataPolicy.fromPartial({}), bundle: undefined, problems: checkOptions(options) };
  if (inputs.problems.length > 0) return inputs;
  // A service file that names the variable without a value names no token.
  if (options.joinToken !== undefined && options.joinToken.trim() !== "") {
    const token = parseJoinToken(options.joinToken);
    const { via } = options;
    if (token.ok) inputs.bundle = via === undefined ? token.bundle : { ...token.bundle, servers: [via] };
    else inputs.problems.push(`--join: the value (not shown, it is a secret) ${token.problem}`);
  }
  if (options.policyFile !== undefined) {
    const read = await readPolicy(options.policyFile);
    if ("policy" in read) inputs.policy = read.policy;
    else inputs.problems.push(read.problem);
  }
  try {
    await nodeDisk.makeFolder(options.stateDir);
    if (!(await isWritable(options.stateDir))) throw new CodedError("EACCES", "it may not be written to");
  } catch (error) {
    inputs.problems.push(
      `--state-dir "${options.stateDir}": ${messageOf(error)}; name a folder the agent may write to`,
    );
  }
  return inputs;
}

async function runConnected(base: Base, bundle: JoinBundle | undefined, signal: AbortSignal): Promise<Exit> {
  const { options, disk, clock, log } = base;
  const facts = await measureFacts(base);
  log.info("calibrated", { gflops: Math.round(facts.gflops * 10) / 10, memoryBytes: facts.memoryBytes });
  const name = options.name ?? nameFromHost(hostname());
  const labels = { ...options.labels };
  const context = { disk, stateDir: options.stateDir, clock, log, signal };
  const identity = await establishIdentity({ ...context, bundle, name, labels, facts });
  return runAs(identity, context, () => runDevice(base, identity, facts, signal));
}

async function runDevice(
  base: Base,
  identity: Identity,
  facts: Awaited<ReturnType<typeof measureFacts>>,
  signal: AbortSignal,
): Promise<Exit> {
  const log = base.log.with({ device: identity.device });
  const servers = base.options.via === undefined ? identity.servers : [base.options.via];
  const plane = await connectControlPlane({ ...identity, servers }, { clock: base.clock, log, signal });
  try {
    const parts = await assembleAgent({ ...base, log }, facts, identity, plane);
    log.info("connected");
    try {
      return await new AgentLoop(parts).run(signal);
    } finally {
      await parts.sessions.close();
    }
  } finally {
    await plane.close();
  }
}

/** Aborts on SIGTERM and SIGINT until it is released. */
function signalsOfProcess(): { signal: AbortSignal; release: () => void } {
  const controller = new AbortController();
  const stop = (): void => controller.abort();
  process.once("SIGTERM", stop).once("SIGINT", stop);
  return { signal: controller.signal, release: () => void process.off("SIGTERM", stop).off("SIGINT", stop) };
}

function exitOf(error: unknown): Exit {
  const code = codeOf(error) ?? "";
  if (code === "ABORTED") return { code: 0, message: "stopped" };
  if (code === "NO_TOKEN" || code === "PROVIDER_ABSENT") return { code: EXIT_USAGE, message: messageOf(error) };
  return { code: REJECTED.has(code) ? EXIT_REJECTED : EXIT_FAILED, message: messageOf(error) };
}

/** Checks the options, claims the state folder, runs, and says how it ended. */
async function runClaimed(
  options: AgentOptions,
  signal: AbortSignal | undefined,
  run: (inputs: Inputs, log: Log, stop: AbortSignal) => Promise<Exit>,
): Promise<number> {
  const inputs = await readInputs(options);
  if (inputs.problems.length > 0) {
    for (const line of inputs.problems) process.stderr.write(`${line}\n`);
    return EXIT_USAGE;
  }
  const log = options.jsonLog === true ? new JsonLog() : new TextLog();
  let claim: Claim;
  try {
    claim = await claimFolder(nodeDisk, options.stateDir);
  } catch (error) {
    // Not wrong usage, after which a service manager would not try again: a full disk passes.
    process.stderr.write(`--state-dir "${options.stateDir}": ${messageOf(error)}; free space there\n`);
    return EXIT_FAILED;
  }
  if (!claim.ok) {
    process.stderr.write(`--state-dir "${options.stateDir}": ${claim.problem}\n`);
    return EXIT_USAGE;
  }
  const own = signal === undefined ? signalsOfProcess() : undefined;
  const stop = signal ?? own?.signal ?? new AbortController().signal;
  let exit: Exit;
  try {
    exit = await run(inputs, log, stop);
  } catch (error) {
    exit = exitOf(error);
  } finally {
    own?.release();
    await claim.release();
  }
  if (exit.code === 0) log.info("agent stopped");
  else log.error("agent stopped", { reason: exit.message, exitCode: exit.code });
  return exit.code;
}

/**
 * Runs an agent until SIGTERM, SIGINT or the signal, and returns its exit code: 0 stopped, 1 failed, 64 wrong options,
 * 77 the control plane does not accept this device. What it was doing goes on at the next start.
 */
export function runAgent(options: AgentOptions, signal?: AbortSignal): Promise<number> {
  return runClaimed(options, signal, async ({ policy, bundle }, log, stop) => {
    const { threads = 1, provider = "cpu" } = options;
    const backend = await openBackend({ threads, provider: isProvider(provider) ? provider : "cpu" }, process);
    const base = { options, disk: nodeDisk, clock: new SystemClock(), log, backend, policy };
    return runConnected(base, bundle, stop);
  });
}

/** Runs the gateway of a site until SIGTERM, SIGINT or the signal; exit codes as `runAgent`. */
export function runGateway(options: GatewayOptions, signal?: AbortSignal): Promise<number> {
  return runClaimed({ ...options, dataset: {} }, signal, ({ bundle }, log, stop) => {
    const base = { options, bundle, hostName: hostname(), disk: nodeDisk, clock: new SystemClock(), log };
    return runSite(base, stop);
  });
}

/**
 * What this machine does at the shapes of real layers, and how fast it would train these models, or a few of reference;
 * needs no fleet.
 * @param onModel called before each model and mode is measured
 */
export async function measureDevice(
  threads: number,
  models: readonly ReportedModel[],
  onModel: (name: string, mode: string) => void,
): Promise<DeviceReport> {
  const { openWorkbench } = await import("./backend/onnx.js");
  return reportDevice(openWorkbench({ threads }), threads, models.length > 0 ? models : referenceModels(), onModel);
}

async function main(): Promise<number> {
  const parsed = parseArguments(process.argv.slice(2), process.env["SHOAL_JOIN_TOKEN"]);
  if (parsed.ok) return runAgent(parsed.options);
  for (const line of parsed.problems) process.stderr.write(`${line}\n`);
  process.stderr.write(USAGE);
  return EXIT_USAGE;
}

const entry = process.argv[1];
if (entry !== undefined && realpathSync(entry) === fileURLToPath(import.meta.url)) process.exitCode = await main();
